"""The verdict on constructed measurements, and on every kept record: what is shown decides, what is not does not."""

from typing import Any

import numpy as np
import pytest
from kept_records import RUNS, judged_now

from raq.experiment.metric import Metric
from raq.report.claims import Drops, Measured, Rules
from raq.report.summary import drops_by
from raq.report.verdict import verdict
from raq.report.verdict_words import plain_ratio, times
from raq.statistics.proportions import drop_interval
from raq.sweep.answers import Answers

IMAGES = 10_000
RULES = Rules(max_drop=1.0)


def right(lost: int, won: int = 0, images: int = IMAGES) -> np.ndarray:
    """What a candidate gets right, where FP32 has all but the last tenth right: it loses some and wins some."""
    found = np.arange(images) < images - images // 10
    found[:lost] = False
    found[images - won :] = True
    return found


def drops_of(right: dict[str, np.ndarray]) -> Drops:
    """As of candidates that have these images right."""
    return drops_by(
        {name: Answers(Metric(), np.stack([one, np.ones(len(one))]), False, len(one)) for name, one in right.items()}
    )


def row(
    ms: float, batch_size: int = 128, runtime: str = "inductor", noise: float = 0.005, launches: int = 20,
    seed: int = 0, device: str = "cpu",
) -> dict[str, Any]:  # fmt: skip
    """A latency around `ms`, its rounds apart by `noise`."""
    rng = np.random.default_rng([seed, batch_size, round(1000 * ms)])
    times = list(ms * np.exp(rng.normal(0, noise, 2 * launches)))
    return {
        "runtime": runtime, "device": device, "batch_size": batch_size, "rounds": 2 * launches, "p50_ms": ms,
        "round_p50_ms": times, "round_launch": [n // 2 for n in range(2 * launches)],
        "round_disturbed": [False] * 2 * launches, "disturbed_rounds": 0, "calm": True, "baseline": "fp32/eager",
        "speedup": 1200 / ms, "speedup_interval": [1190 / ms, 1210 / ms],
    }  # fmt: skip


def candidate(name: str, *rows: dict[str, Any], weight_mb: float = 11.2, drop: float = 0.0) -> dict[str, Any]:
    program = name.removesuffix("-openvino")
    kind = program if program in ("fp32", "qat") else "ptq"
    artifact = {"runtime": "inductor", "weight_bytes": 1e6 * weight_mb, "size_bytes": 1e6 * weight_mb}
    return {
        "name": name, "kind": kind, "program": program, "backend": "x86", "drop_points": drop, "test_images": IMAGES,
        "artifacts": [artifact], "latency": list(rows),
    }  # fmt: skip


def fp32(*rows: dict[str, Any]) -> dict[str, Any]:
    return candidate("fp32", *(rows or (row(1200, runtime="eager"), row(800))), weight_mb=44.7)


def classify(candidates: list[dict[str, Any]], rules: Rules = RULES, **lost: Any) -> dict[str, Any]:
    """The verdict, where each candidate loses (and wins) so many images; its size is that of the last one's."""
    gone = {name: given if isinstance(given, tuple) else (given,) for name, given in lost.items()}
    images = next((given[2] for given in gone.values() if len(given) > 2), IMAGES)
    found = {name.replace("_", "-"): right(*(*given, 0)[:2], images) for name, given in gone.items()}
    for one in candidates:
        one["test_images"] = images
    return verdict(
        candidates, rules, drops_of({"fp32": right(0, 0, images), **found}), {"cpu": Measured(60.0, "budget")}
    )


def claim(found: dict[str, Any], text: str) -> dict[str, Any]:
    return next(c for c in found["claims"] if text in c["claim"])


def test_one_that_is_shown_to_be_fast_and_accurate_is_shipped() -> None:
    found = classify([fp32(), candidate("ptq", row(200))], ptq=10)
    assert found["choice"] == "ptq"
    assert "75% smaller in weights, 4.00 times (3.99 to 4.02) as fast as the best FP32 (fp32/inductor)" in found["why"]
    assert "6.00 times (5.95 to 6.05) as fast as fp32/eager, at batch 128 on cpu" in found["why"]
    assert "it loses 0.10 points of top-1 (0.05 to 0.18; allowed: 1)" in found["why"]
    assert claim(found, "ptq loses at most 1 points")["holds"] is True
    assert claim(found, "ptq is faster than the best FP32")["holds"] is True
    assert found["choices"] == [{"device": "cpu", "batch_size": 128, "choice": "ptq"}]


@pytest.mark.parametrize("launches", [1, 2, 3])
def test_few_launches_give_no_bolder_verdict(launches: int) -> None:
    """A thousandth faster, a point of accuracy lost, too few launches for an interval."""
    rows = [row(ms, launches=launches) for ms in (800, 200, 199.8)]
    found = classify([fp32(rows[0]), candidate("ptq", rows[1]), candidate("qat", rows[2])], ptq=0, qat=60)
    assert found["choice"] is None
    assert f"has no interval, as {launches} launch" in found["why"]


def test_a_drop_that_may_be_too_large_is_not_shipped() -> None:
    """0.95 points lost, of at most 1, on 400 images: the interval goes far beyond."""
    found = classify([fp32(), candidate("ptq", row(200))], ptq=(4, 0, 400))
    assert found["choice"] is None
    assert claim(found, "ptq loses at most")["holds"] is None
    assert "ptq is faster, and whether it loses at most 1 points of top-1 is not known (1.00 points" in found["why"]
    near = classify([fp32(), candidate("ptq", row(200))], ptq=(3, 0, 400))["why"]
    assert "about 6100 test images would decide it, and there are 400" in near


def test_what_it_takes_is_enough() -> None:
    """With as many images as it asks for, and the same share lost, the drop is shown."""
    assert drop_interval(3 * 15.25, 0, 6100)[1] <= 1.0 < drop_interval(3 * 10, 0, 4000)[1]


def test_one_that_loses_too_much_is_not_shipped() -> None:
    found = classify([fp32(), candidate("ptq", row(200))], ptq=200)
    assert found["choice"] == "fp32"
    assert "no other candidate may be shipped" in found["why"]
    assert "ptq loses more than 1 points (2.00 points, 1.7" in found["why"]


def test_a_candidate_slower_at_another_batch_size_is_not_chosen_there() -> None:
    ones = (row(20, 1, "eager"), row(18, 1))
    found = classify(
        [fp32(*ones, row(1200, runtime="eager"), row(800)), candidate("ptq", row(34, 1), row(200))], ptq=10
    )
    assert [c["choice"] for c in found["choices"]] == ["fp32", "ptq"]
    assert found["choice"] == "ptq", "of the largest batch size"
    assert "At batch 1 on cpu, ship fp32." in found["why"]
    assert "ptq is slower than the best FP32, fp32/inductor, at batch 1 on cpu: 0.53 times" in found["why"]
    small = classify(
        [fp32(*ones, row(1200, runtime="eager"), row(800)), candidate("ptq", row(34, 1), row(200))],
        Rules(1.0, batch_size=1), ptq=10,
    )  # fmt: skip
    assert small["choice"] == "fp32"


def test_the_best_fp32_may_be_eager_mode() -> None:
    found = classify([fp32(row(20, 1, "eager"), row(25, 1)), candidate("ptq", row(22, 1))], ptq=0)
    assert found["choice"] == "fp32"
    assert claim(found, "is faster than the best FP32, fp32/eager")["holds"] is False


def test_of_two_equivalent_ones_the_cheaper_is_shipped() -> None:
    found = classify([fp32(), candidate("qat", row(200.2)), candidate("ptq", row(200))], ptq=10, qat=12)
    assert found["choice"] == "ptq"
    assert "equivalent to qat within 2% in speed and 0.3 points, and ptq takes less to make" in found["why"]


def test_of_two_as_fast_the_one_shown_to_be_more_accurate_is_shipped() -> None:
    found = classify([fp32(), candidate("ptq", row(200)), candidate("qat", row(200.2))], ptq=60, qat=(5, 5))
    assert found["choice"] == "qat"
    assert "as fast as ptq, and not less accurate" in found["why"]


@pytest.mark.parametrize("suffix", ["", "-openvino"])
def test_qat_that_is_shown_to_be_worse_than_ptq_is_left_aside_however_fast(suffix: str) -> None:
    ptq, qat, key = f"ptq{suffix}", f"qat{suffix}", suffix.replace("-", "_")

    def decided(lost: int, ms: float = 170, backend: str = "x86", of_ptq: int = 5) -> dict[str, Any]:
        other = {**candidate(qat, row(150), drop=0.7), "backend": backend}
        return classify([fp32(), candidate(ptq, row(ms)), other], **{f"ptq{key}": of_ptq, f"qat{key}": lost})

    found = decided(70)
    assert found["choice"] == ptq
    assert found["why"].startswith(f"Ship {ptq}")
    assert f"{qat} is worse than {ptq} (0.65 points, 0.51 to 0.83), so it is left aside." in found["why"]
    assert claim(found, f"{qat} is not worse than {ptq}")["holds"] is False
    assert len({one["claim"] for one in found["claims"]}) == len(found["claims"])
    alike, slower, no_alternative = decided(7), decided(70, ms=900), decided(70, ms=801, of_ptq=40)
    for found in (alike, slower, no_alternative, decided(70, backend="cuda")):
        assert found["choice"] == qat
        assert "left aside" not in found["why"]


def test_of_two_as_fast_whose_accuracy_is_not_known_none_is() -> None:
    found = classify(
        [fp32(), candidate("ptq", row(200)), candidate("qat", row(200.2))], ptq=(8, 8, 2000), qat=(0, 0, 2000)
    )
    assert found["choice"] is None
    assert "ptq and qat are equally fast, and which is more accurate is not known within 0.3 points" in found["why"]
    assert "test images would decide it, and there are 2000; or accept a larger select.margin.accuracy" in found["why"]
    wide = Rules(1.0, accuracy_margin=2.0)
    pair = [fp32(), candidate("ptq", row(200)), candidate("qat", row(200.2))]
    assert classify(pair, wide, ptq=(8, 8, 2000), qat=(0, 0, 2000))["choice"] == "ptq"


def test_a_wide_interval_of_speed_is_not_no_difference() -> None:
    noisy = {"noise": 0.15, "launches": 12}
    pair = [fp32(row(800, **noisy)), candidate("ptq", row(200, **noisy)), candidate("qat", row(199, **noisy))]
    found = classify(pair, ptq=0, qat=0)
    assert found["choice"] is None
    assert "times its speed" in found["why"]
    assert " min of measuring (bench.budget_s: " in found["why"] or "too near the margin" in found["why"]


def test_more_candidates_need_more_evidence() -> None:
    """One candidate's drop is shown; beside five others that lose as much it is not."""
    alone = classify([fp32(), candidate("ptq", row(200))], ptq=78)
    assert claim(alone, "ptq loses at most")["holds"] is True
    others = [candidate(f"mixed-{n}", row(300 + n)) for n in range(1, 6)]
    lost = {f"mixed_{n}": 78 for n in range(1, 6)}
    together = classify([fp32(), candidate("ptq", row(200)), *others], ptq=78, **lost)
    assert claim(together, "ptq loses at most")["holds"] is None
    assert together["choice"] is None
    clear = classify([fp32(), candidate("ptq", row(200)), *others], ptq=78, **dict.fromkeys(lost, 0))
    assert claim(clear, "ptq loses at most")["holds"] is True, "what is clear costs the others nothing"


@pytest.mark.parametrize("launches", [8, 20, 60, 200])
def test_more_launches_do_not_take_a_choice_back(launches: int) -> None:
    """ptq is the fastest by less than the margin; whether qat is equivalent in speed, few launches cannot tell."""
    rows = [row(ms, launches=launches, noise=0.012) for ms in (800, 200, 201.5)]
    three = [fp32(rows[0]), candidate("ptq", rows[1]), candidate("qat", rows[2])]
    unknown = classify(three, Rules(3.0), ptq=(18, 16, 2000), qat=(0, 0, 2000))
    assert unknown["choice"] is None
    assert "more accurate is not known within 0.3 points" in unknown["why"] or "not known" in unknown["why"]
    worse = classify(three, ptq=60, qat=0)
    assert worse["choice"] in (None, "qat"), "never the one that is shown to be less accurate"
    if launches >= 60:
        assert worse["choice"] == "qat"


def test_one_that_is_shown_to_be_slower_than_fp32_is_not_chosen() -> None:
    found = classify([fp32(row(800, noise=0.001)), candidate("ptq", row(808, noise=0.001))], ptq=0)
    assert claim(found, "ptq is faster than the best FP32")["holds"] is False
    assert found["choice"] == "fp32"
    assert (
        classify([fp32(row(800)), candidate("ptq", row(860))], Rules(1.0, speed_margin=0.1), ptq=0)["choice"] == "fp32"
    )
    assert classify([fp32(row(800)), candidate("ptq", row(900))], Rules(1.0, then="size"), ptq=0)["choice"] == "fp32"


def test_every_fp32_counts_not_the_one_that_looks_faster() -> None:
    """Eager mode has too few launches to be known: that the compiled one is beaten is not enough."""
    eager = row(20.5, 1, "eager", noise=0.2, launches=3)
    found = classify([fp32(eager, row(20, 1)), candidate("ptq", row(19.4, 1))], ptq=0)
    assert found["choice"] is None
    assert "the speed of fp32/eager and ptq/inductor has no interval, as 3 launches are too few" in found["why"]


def test_fp32_in_another_runtime_is_fp32() -> None:
    """Beside it int8 has to be faster than the fastest FP32 there is, whoever executes that."""
    other = candidate("fp32-openvino", row(600, runtime="openvino"), weight_mb=44.7)
    found = classify([fp32(), candidate("ptq", row(700)), other], ptq=0, fp32_openvino=0)
    assert found["choice"] == "fp32-openvino"
    assert "ptq is slower than the best FP32, fp32-openvino/openvino, at batch 128 on cpu" in found["why"]
    assert claim(found, "ptq is faster than fp32/inductor")["holds"] is True
    int8 = candidate("ptq-openvino", row(150, runtime="openvino"))
    found = classify([fp32(), candidate("ptq", row(700)), other, int8], ptq=0, fp32_openvino=0, ptq_openvino=0)
    assert found["choice"] == "ptq-openvino"
    assert "4.00 times (3.98 to 4.02) as fast as the best FP32 (fp32-openvino/openvino)" in found["why"]
    assert not any("fp32-openvino is faster than" in one["claim"] for one in found["claims"])


@pytest.mark.parametrize("then", ["speed", "size"])
@pytest.mark.parametrize("ms", [400, 800])
def test_fp32_in_two_runtimes_is_equally_accurate(ms: float, then: str) -> None:
    """300 images show no drop of less than a point; of the same network no claim about it is made."""
    other = candidate("fp32-openvino", row(ms, runtime="openvino"), weight_mb=44.7)
    images = 300
    found = classify(
        [fp32(), candidate("ptq", row(900)), other], Rules(1.0, then=then), ptq=(90, 0, images),
        fp32_openvino=(0, 0, images),
    )  # fmt: skip
    assert found["choice"] in (("fp32-openvino",) if ms == 400 and then == "speed" else ("fp32", "fp32-openvino"))
    assert not any("fp32-openvino loses" in one["claim"] for one in found["claims"])
    assert "no other candidate may be shipped" in found["why"]


def test_a_candidate_whose_accuracy_is_not_known_at_all_is_in_the_way() -> None:
    found = classify([fp32(), candidate("ptq", row(200)), candidate("qat", row(150))], ptq=0)
    assert found["choice"] is None
    assert (
        "qat is faster, and whether it loses at most 1 points of top-1 is not known (nothing is known of it)"
        in found["why"]
    )


def test_everything_that_is_open_is_told() -> None:
    lost = {"ptq": (4, 0, 400), "qat": (4, 0, 400)}
    found = classify([fp32(), candidate("ptq", row(200)), candidate("qat", row(150))], **lost)
    assert "ptq and qat are faster, and whether they lose" in found["why"]


def test_who_is_faster_and_who_may_be_are_not_mixed_up() -> None:
    """Of the rivals whose accuracy is not known, one is shown to be faster than what may be shipped, one may be."""
    three = [fp32(), candidate("ptq", row(150)), candidate("qat", row(640, noise=0.3, launches=8))]
    found = classify(three, ptq=(4, 0, 400), qat=(4, 0, 400))
    assert "ptq is faster, and whether it loses" in found["why"]
    assert "qat may be faster, and whether it loses" in found["why"]


def test_the_file_that_is_told_is_that_of_the_device() -> None:
    plain, ptq = fp32(row(800, device="cuda")), candidate("ptq", row(200, device="cuda"))
    for one, cpu, cuda in ((plain, 45e6, 104e6), (ptq, 12e6, 52e6)):
        (on_cpu,) = one["artifacts"]
        one["artifacts"] = [
            {**on_cpu, "target": "cpu", "size_bytes": cpu}, {**on_cpu, "target": "cuda", "size_bytes": cuda},
        ]  # fmt: skip
    found = classify([plain, ptq], ptq=0)
    assert "75% smaller in weights (50% as a file)" in found["why"]


def test_what_it_takes_when_precision_ended_it() -> None:
    noisy = {"noise": 0.05, "launches": 12}
    pair = [fp32(row(800, **noisy)), candidate("ptq", row(200, **noisy)), candidate("qat", row(199, **noisy))]
    counts = drops_of({name: right(0) for name in ("fp32", "ptq", "qat")})
    rules = Rules(1.0, precision=0.02, budget_s=180.0)
    early = verdict(pair, rules, counts, {"cpu": Measured(60.0, "precision")})["why"]
    assert "ask for a smaller bench.precision (about 0.0" in early or "too near the margin" in early
    late = verdict(pair, rules, counts, {"cpu": Measured(60.0, "budget")})["why"]
    assert "bench.precision" not in late


def test_one_that_is_as_fast_as_fp32_and_smaller_is_shipped() -> None:
    found = classify([fp32(row(800)), candidate("ptq", row(800.1))], ptq=(3, 3))
    assert found["choice"] == "ptq"
    assert "equivalent to fp32 within 2% in speed and 0.3 points, and ptq is the smaller" in found["why"]


def test_the_smallest_where_size_decides() -> None:
    pair = [fp32(), candidate("ptq", row(700), weight_mb=11), candidate("mixed-1", row(100), weight_mb=20)]
    found = classify(pair, Rules(1.0, then="size"), ptq=0, mixed_1=0)
    assert found["choice"] == "ptq"
    unknown = classify(pair, Rules(1.0, then="size"), ptq=(4, 0, 400), mixed_1=(0, 0, 400))
    assert unknown["choice"] is None
    assert "ptq and mixed-1 are smaller, and whether they lose at most 1 points" in unknown["why"]


def test_an_unproven_candidate_does_not_hinder_a_faster_proven_one() -> None:
    found = classify([fp32(), candidate("ptq", row(200)), candidate("qat", row(300))], ptq=0, qat=(95, 0))
    assert found["choice"] == "ptq"
    assert "qat may lose more than 1 points" in found["why"]


def test_devices_have_choices_of_their_own() -> None:
    pair = [
        fp32(row(800), row(8, device="cuda", seed=1)),
        candidate("ptq", row(200), row(9, device="cuda", seed=2)),
    ]
    found = classify(pair, ptq=0)
    assert {(c["device"], c["choice"]) for c in found["choices"]} == {("cpu", "ptq"), ("cuda", "fp32")}
    assert found["choice"] == "ptq"


def test_what_was_not_measured_and_what_was_not_calm_is_said() -> None:
    ptq, far = candidate("ptq", row(200)), candidate("qat", drop=0.1)
    ptq["latency"][0]["round_disturbed"] = [n >= 10 for n in range(40)]  # 5 launches of 20 are undisturbed
    far |= {"artifacts": [], "not_lowered": "no Arm here"}
    found = classify([fp32(), ptq, far], ptq=0, qat=0)
    assert found["why"].count("(30 of 40 rounds were disturbed)") == 2, "of either ratio"
    assert "qat: not lowered here, so not measured." in found["why"]
    for one in (ptq, plain := fp32()):
        for one_row in one["latency"]:
            one_row["round_far"] = [n >= 12 for n in range(40)]
    found = classify([plain, ptq, far], ptq=0, qat=0)
    assert found["why"].count("(in 28 of 40 rounds the CPUs were far apart)") == 2
    ptq["latency"][0]["round_disturbed"] = [n >= 12 for n in range(40)]  # 6 launches are enough, and alone count
    assert "rounds" not in classify([plain, ptq, far], ptq=0, qat=0)["why"]


def test_eager_modes_few_rounds_decide_nothing_between_artifacts() -> None:
    """In the one launch that eager mode took part in, the faster of two artifacts was slow."""
    eager = row(1200, runtime="eager", noise=0.0, launches=1) | {"round_number": [0, 1]}
    rows = [row(800, noise=0.0), row(200, noise=0.0), row(190, noise=0.0)]
    for one in rows:
        one["round_number"] = list(range(40))
    rows[2]["round_p50_ms"][:2] = [220.0, 220.0]
    three = [fp32(eager, rows[0]), candidate("ptq", rows[1]), candidate("qat", rows[2])]
    found = classify(three, ptq=0, qat=0)
    assert "qat/inductor is at most 2% faster than ptq/inductor" not in str(found["claims"])
    assert found["choice"] in (None, "qat")


def test_fp32_is_not_shipped_because_little_is_known_of_one_as_fast_and_smaller() -> None:
    found = classify([fp32(row(800)), candidate("ptq", row(800.1))], ptq=(0, 0, 200))
    assert found["choice"] is None
    assert "ptq may be as fast and is smaller, and whether it loses at most 1 points" in found["why"]


def test_no_claim_stands_twice() -> None:
    """Groups of equals differ from place to place, and so does the level of their claims: each names its place."""
    candidates = [
        fp32(row(20, 1), row(800)), candidate("ptq", row(5, 1), row(200)), candidate("qat", row(5, 1), row(200.1)),
        candidate("mixed-1", row(9, 1), row(200.2)),
    ]  # fmt: skip
    found = classify(candidates, ptq=18, qat=0, mixed_1=0)
    texts = [made["claim"] for made in found["claims"]]
    assert len(set(texts)) == len(texts)
    assert any("as fast as qat at batch 1 on cpu, loses at most" in text for text in texts)


def test_fp32_alone_is_what_there_is() -> None:
    assert classify([fp32()])["choice"] == "fp32"
    bare = fp32() | {"artifacts": [], "latency": []}
    assert classify([bare])["choice"] is None


def test_a_claim_and_its_interval_cannot_disagree() -> None:
    for lost in range(0, 200, 7):
        found = classify([fp32(), candidate("ptq", row(200))], ptq=lost)
        for made in found["claims"]:
            low, high = made["interval"]
            inside = low <= made["margin"] <= high
            assert (made["holds"] is None) == (inside and made["margin"] not in (low, high))


SAYS = {
    "cifar10": ("ptq", "3.98 times (3.83 to 4.12) as fast as the best FP32 (fp32/inductor)"),
    "cifar10-avx2": (None, "whether qat/inductor is more than 2% faster than ptq/inductor is not known"),
    "calibration-sweep": ("ptq", "75% smaller in weights"),
    "qat-as-written": (None, "has no interval, as 3 launches are too few for one"),
    "qat-sweep": (None, "has no interval, as 3 launches are too few for one"),
    "mixed-precision": (None, "whether it loses at most 5 points of top-1 is not known"),
}


@pytest.mark.parametrize("name", RUNS)
def test_what_is_said_of_kept_records(name: str) -> None:
    """The same network's records no longer disagree without saying why."""
    found = judged_now(name)["verdict"]
    choice, words = SAYS[name]
    assert found["choice"] == choice
    assert words in found["why"] or any(words in c["claim"] for c in found["claims"])
    for made in found["claims"]:
        assert set(made) == {"claim", "value", "interval", "margin", "holds"}
        assert made["holds"] in (True, False, None)


def test_no_ratio_is_told_as_zero() -> None:
    assert plain_ratio(0.00215) == "0.0022"
    assert times(0.00215, (0.0021, 0.0022)) == "0.0022 times (0.0021 to 0.0022)"
    assert times(0.5, (0.4, 0.6)) == "0.50 times (0.40 to 0.60)"
    assert plain_ratio(2.0) == "2.00"


def test_what_is_not_int8_on_a_gpu_or_was_not_evaluated_there_is_said() -> None:
    """The graph of a backend for CPUs, lowered for a GPU too: faster there, but not by int8."""
    devices = [("cpu", {}), ("cuda", {"note": "arithmetic is float", "is_evaluated": False})]
    found = [
        candidate("fp32", row(1000.0), row(100.0, device="cuda")),
        candidate("ptq", row(300.0), row(50.0, device="cuda")),
    ]
    for one in found:
        made = one["artifacts"][0]
        one["artifacts"] = [made | {"target": device, "is_evaluated": True} | more for device, more in devices]
    known = verdict(found, RULES, drops_of({"fp32": right(0), "ptq": right(10)}))
    assert [choice["choice"] for choice in known["choices"]] == ["ptq", "ptq"]
    said = "On cuda ptq computes in floats: what it gains is the compiler's, not int8's. The accuracy of ptq was not"
    assert f"{said} measured on cuda." in known["why"]
    assert "On cpu" not in known["why"]
