"""The measurement: processes of their own, rounds interleaved; when it ends; and the arithmetic of a row."""

import json
import math
import os
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._inductor.runtime import cache_dir_utils

from raq.bench import latency, nearest
from raq.bench.latency import MIN_EAGER_LAUNCHES, Measurement, measure
from raq.bench.launcher import fork_server
from raq.bench.messages import ContenderSettings, Loaded, Timed, Warmed
from raq.bench.noise import Sample
from raq.bench.ratio_statistics import MIN_LAUNCHES, paired_ratio, relative_half_width
from raq.bench.rows import Launch, Round, contender_row, ratios, with_samples
from raq.environment import available_cpus, inductor_cache
from raq.errors import StageError
from raq.experiment.inputs import image_input
from raq.experiment.measurement import Bench
from raq.model.zoo import build_model
from raq.report.ratios import row_ratios, shared_rounds

PROTOCOL = Bench(batch_sizes=(1, 4), rounds=6, precision=None, repetitions=2, round_ms=0.0, warmup=1)
ONE_CPU = available_cpus()[:1]


MODULE = """
from torch import nn

def model(num_classes):
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))
"""


@pytest.fixture(scope="module")
def contender(tmp_path_factory: pytest.TempPathFactory) -> ContenderSettings:
    folder = tmp_path_factory.mktemp("contender")
    (folder / "bench_user.py").write_text(MODULE)
    name = "bench_user:model"
    torch.save(build_model(name, 10, str(folder)).state_dict(), folder / "w.pt")
    return ContenderSettings(
        "fp32", "eager", "cpu", str(folder / "w.pt"), (image_input((3, 16, 16)),), 1, name, 10, str(folder)
    )


@pytest.fixture(scope="module")
def started():
    """One process to fork contenders from, for all tests here: it imports torch once."""
    with fork_server() as own:
        yield own


def test_two_contenders_measured(contender: ContenderSettings, started) -> None:
    before = os.sched_getaffinity(0)
    reported: list[tuple[float, str]] = []
    twin = replace(contender, candidate="ptq")
    found = measure([contender, twin], PROTOCOL, ONE_CPU, lambda share, text: reported.append((share, text)), started)
    assert reported[-1] == (1.0, "rounds done: 6, launches: 6")
    assert os.sched_getaffinity(0) == before
    assert (found["stopped_by"], found["launches"]) == ("rounds", 6)
    assert [(row["candidate"], row["batch_size"]) for row in found["rows"]] == [
        ("fp32", 1), ("ptq", 1), ("fp32", 4), ("ptq", 4),
    ]  # fmt: skip
    for row in found["rows"]:
        assert row["round_launch"] == [0, 1, 2, 3, 4, 5]
        assert row["first_ms"] > 0
        assert row["p99_ms"] is None, "12 samples bear no p99"
        assert row["samples_needed"] == {"p90": 29, "p99": 299}
        assert row["threads"] == 1
        assert row["peak_bytes"] > 1e8, "torch alone is that large"
        assert row["baseline"] == "fp32/eager"
    assert found["rows"][0]["speedup"] == 1.0
    assert set(found["samples"]) == {"fp32/eager/1", "ptq/eager/1", "fp32/eager/4", "ptq/eager/4"}
    for taken in found["samples"].values():
        assert [sample["round"] for sample in taken if sample["attempt"] == 0] == list(range(6))
        assert all(len(sample["samples_ms"]) == 2 for sample in taken)


@pytest.mark.skipif(len(available_cpus()) < 2, reason="one CPU hands nothing over")
def test_a_run_that_is_kept_apart_from_start_to_end_is_told(contender, started, tmp_path, monkeypatch) -> None:
    """Its handovers are all alike; what was remembered tells."""
    monkeypatch.setenv("RAQ_CACHE", str(tmp_path))
    two = replace(contender, threads=2)
    pair, cpus = [two, replace(two, candidate="ptq")], available_cpus()[:2]
    monkeypatch.setattr("raq.bench.noise.MAX_BEYOND_NEAR_US", 0.0)
    monkeypatch.setattr("raq.bench.noise.MAX_FAR_US", math.inf)
    nearest.file_of(cpus, 2).parent.mkdir()
    nearest.file_of(cpus, 2).write_text(json.dumps({"near_us": 1e-6, "seen": datetime.now(UTC).isoformat()}))
    protocol = PROTOCOL.model_copy(
        update={"batch_sizes": (1,), "budget_s": 1.0}
    )  # samples are not taken again for long
    found = measure(pair, protocol, cpus, started=started)
    assert found["noise"]["handover_us"]["remembered"] == 1e-6
    one, other = found["rows"][:2]
    rounds = shared_rounds(one, other)
    assert rounds is not None and rounds.counted == rounds.shared
    assert 2 * rounds.disturbed > rounds.shared, "all, but that a handover may be measured as none"
    assert other["calm"] is False


def test_a_fresh_process_for_every_launch(contender: ContenderSettings, started) -> None:
    processes = []
    for _ in range(2):
        with started.launch(contender, ONE_CPU) as process:
            processes.append(process.loaded.pid)
            assert process.loaded.cpus == ONE_CPU
    assert len(set(processes)) == 2
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in processes):
        assert time.monotonic() < deadline, "they end with their sockets"
        time.sleep(0.01)


@pytest.mark.parametrize("rounds", [6, 7, 10, 20])
def test_any_number_of_rounds_has_an_interval(contender: ContenderSettings, started, rounds: int) -> None:
    protocol = Bench(batch_sizes=(1,), rounds=rounds, precision=None, repetitions=1, round_ms=0.0, warmup=1)
    found = measure([contender, replace(contender, candidate="ptq")], protocol, ONE_CPU, started=started)
    assert found["rows"][1]["rounds"] == rounds
    assert found["rows"][1]["speedup_interval"] is not None


def test_rounds_end_with_the_precision_or_with_the_time(
    contender: ContenderSettings, started, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The budget is far more than a slow machine takes, of which a small share must have passed."""
    monkeypatch.setattr(latency, "SPREAD", 0.02)
    twin = replace(contender, candidate="ptq")
    small = {"batch_sizes": (1,), "rounds": 6, "round_ms": 0.0, "warmup": 1}
    loose = measure([contender, twin], Bench(**small, precision=1.0, budget_s=60.0), ONE_CPU, started=started)
    assert loose["stopped_by"] == "precision"
    assert loose["launches"] >= MIN_LAUNCHES, "as many as an interval needs"
    assert loose["elapsed_s"] >= 0.02 * 60.0, "launches in a row agree by nature"
    low, high = loose["rows"][1]["speedup_interval"]
    assert low <= loose["rows"][1]["speedup"] <= high
    hurried = measure([contender, twin], Bench(**small, precision=1e-9, budget_s=0.5), ONE_CPU, started=started)
    assert hurried["stopped_by"] == "budget"


def test_the_published_protocol_is_one_contender_after_the_other(contender: ContenderSettings, started) -> None:
    published = Bench(protocol="published", batch_sizes=(2,), repetitions=5, warmup=2)
    found = measure([contender, replace(contender, candidate="ptq")], published, ONE_CPU, started=started)
    assert (published.rounds, published.precision, found["stopped_by"]) == (1, None, "repetitions")
    for row in found["rows"]:
        assert (row["samples"], row["rounds"], row["speedup_interval"]) == (5, 1, None)


def test_published_fills_in_what_is_not_written() -> None:
    assert Bench(protocol="published").repetitions == 50
    assert Bench(protocol="published", repetitions=7).repetitions == 7
    assert Bench().repetitions == 1


def sample(milliseconds: float, disturbed: bool = False) -> Sample:
    return Sample([milliseconds] * 2, 0.0, 0.0, 0.0, 0, disturbed)


def measured(contender: ContenderSettings, times: list[tuple[float, float, bool]]) -> Measurement:
    """A measurement with a round a launch: baseline's time, candidate's time, whether the candidate was disturbed."""
    names = ("fp32/eager", "ptq/eager")
    warmed = Launch(Loaded(2.0, 1, None, 0), {1: Warmed(1.0, 5, True, 7)})
    found = Measurement(
        [replace(contender, candidate=n.partition("/")[0]) for n in names], PROTOCOL, ONE_CPU, lambda share, text: None
    )
    found.launches = [dict.fromkeys(names, warmed) for _ in times]
    found.rounds = {
        1: [
            Round(n, {names[0]: [sample(a)], names[1]: [sample(b, excluded)]})
            for n, (a, b, excluded) in enumerate(times)
        ]
    }
    return found


def row_of(found: Measurement) -> dict:
    """The candidate's row."""
    return contender_row(found.contenders[1], found.baseline, 1, found.rounds[1], found.launches)


def test_a_row_from_known_samples(contender: ContenderSettings) -> None:
    found = measured(contender, [(10.0, 5.0, False), (30.0, 10.0, False), (20.0, 10.0, False)] * 3)
    summary = row_of(found)
    assert summary["speedup"] == pytest.approx(12 ** (1 / 3), rel=0.02)  # ratios within rounds: 2, 3, 2
    assert summary["p50_ms"] == 10.0
    assert summary["mean_ms"] == pytest.approx(25 / 3)
    assert summary["std_ms"] == pytest.approx(2.4254, abs=1e-4)
    low, high = summary["speedup_interval"]
    assert low < 2.1
    assert high > 2.5
    assert (summary["calm"], summary["disturbed_rounds"]) == (True, 0)


def test_disturbed_rounds_do_not_count_while_there_are_enough_others(contender: ContenderSettings) -> None:
    found = measured(contender, [(10.0, 5.0, False)] * 7 + [(10.0, 50.0, True)] * 9)
    summary = row_of(found)
    assert (summary["speedup"], summary["p50_ms"], summary["calm"], summary["disturbed_rounds"]) == (2.0, 5.0, True, 9)


def test_a_machine_that_is_never_calm_is_told(contender: ContenderSettings) -> None:
    found = measured(contender, [(10.0, 5.0, False)] * 3 + [(10.0, 50.0, True)] * 9)
    summary = row_of(found)
    assert (summary["calm"], summary["disturbed_rounds"], summary["rounds"]) == (False, 9, 12)
    low, high = summary["speedup_interval"]
    assert low < 0.2
    assert high > 0.6, "all rounds count: the interval is as wide as they are apart"


def test_few_rounds_are_not_a_noisy_machine(contender: ContenderSettings) -> None:
    found = measured(contender, [(10.0, 5.0, False)] * 3)
    assert row_of(found)["calm"] is True


def test_a_system_that_tells_nothing_is_not_called_calm(contender: ContenderSettings) -> None:
    found = measured(contender, [(10.0, 5.0, False)] * 8)
    for entry in found.rounds[1]:
        entry.attempts["ptq/eager"] = [replace(sample(5.0), waited=None, foreign_cpus=None, stolen_cpus=None)]
    assert row_of(found)["calm"] is None


class Scripted:
    """A contender's process that is disturbed the first `excluded` times; `order` is that of being asked."""

    def __init__(self, name: str, order: list[str], excluded: int = 0) -> None:
        self.name, self.order, self.excluded = name, order, excluded

    def time_round(self, batch_size: int, repetitions: int, round_ms: float) -> Timed:
        self.order.append(self.name)
        self.excluded -= 1
        waited = 0.5 if self.excluded >= 0 else 0.0
        return Timed([1.0], 1.0, waited, 10.0, None)


def test_the_order_alternates_and_disturbed_samples_are_taken_again(contender: ContenderSettings) -> None:
    found = measured(contender, [])
    found.started = time.perf_counter()
    order: list[str] = []
    processes = {"fp32/eager": Scripted("fp32", order), "ptq/eager": Scripted("ptq", order, excluded=2)}
    for n in range(3):
        found.rounds[1].append(found._round(0, 1, processes, backwards=n % 2 == 1))
    assert order == ["fp32", "ptq", "ptq", "ptq", "ptq", "fp32", "fp32", "ptq"]
    assert [s.disturbed for s in found.rounds[1][0].attempts["ptq/eager"]] == [True, True, False]
    assert found.repeating_s > 0


def test_the_order_is_drawn_for_every_launch(contender: ContenderSettings, started) -> None:
    """No place in the order is any contender's: the first one would be faster than its twin."""
    protocol = Bench(batch_sizes=(1,), rounds=24, precision=None, repetitions=1, round_ms=0.0, warmup=1)
    entrants = [contender, replace(contender, candidate="ptq")]
    found = Measurement(entrants, protocol, ONE_CPU, lambda share, text: None)
    found.run(started)
    firsts = [next(iter(r.attempts)) for r in found.rounds[1]]
    launches = [r.launch for r in found.rounds[1]]
    by_launch = [
        [first for first, launch in zip(firsts, launches, strict=True) if launch == n] for n in sorted(set(launches))
    ]
    assert len(by_launch) >= 6, "a launch has four rounds, or fewer where a slow machine is behind its time"
    assert all(one[0] != one[1] for one in by_launch if len(one) > 1), "and reversed within a launch"
    pairs = list(zip(by_launch[::2], by_launch[1::2], strict=False))
    assert all(one[0] != other[0] for one, other in pairs), "of two launches, each is first in one"


def test_eager_mode_has_fewer_samples_and_both_have_what_decides(contender: ContenderSettings, started) -> None:
    """With two artifacts beside it (here in name alone), it has a sample a launch, in as many launches as it needs."""
    artifacts = [replace(contender, candidate=name, runtime="inductor") for name in ("twin", "ptq")]
    protocol = Bench(batch_sizes=(1,), precision=1e-9, budget_s=4.0, round_ms=5.0)
    found = Measurement([contender, *artifacts], protocol, ONE_CPU, lambda share, text: None)
    assert found.eager == "fp32/eager"
    assert Measurement([contender, artifacts[0]], protocol, ONE_CPU, lambda s, t: None).eager is None
    assert Measurement(artifacts, protocol, ONE_CPU, lambda s, t: None).eager is None
    found.contenders = [contender, *(replace(a, runtime="eager") for a in artifacts)]  # as no package is at hand
    found.__class__ = EagerFirst
    found.run(started)
    samples = {c.name: len(with_samples(found.rounds[1], c.name)) for c in found.contenders}
    launches = {c.name: {r.launch for r in with_samples(found.rounds[1], c.name)} for c in found.contenders}
    assert samples["fp32/eager"] == len(launches["fp32/eager"]) >= 6, "one a launch, in as many as an interval needs"
    assert samples["twin/eager"] == samples["ptq/eager"] >= 2 * len(found.launches) - 1
    assert launches["fp32/eager"] <= launches["ptq/eager"]
    spent = {name: sum(parts.values()) for name, parts in found.spent_s.items()}
    assert sum(spent.values()) <= found.elapsed_s()
    row = contender_row(found.contenders[2], "fp32/eager", 1, found.rounds[1], found.launches)
    eager = contender_row(found.contenders[0], "fp32/eager", 1, found.rounds[1], found.launches)
    assert eager["round_number"] == [n for n, r in enumerate(found.rounds[1]) if "fp32/eager" in r.attempts]
    assert row["round_number"] == list(range(len(found.rounds[1])))
    assert row["speedup_interval"] is not None
    ratio, interval = paired_ratio(row_ratios(eager, row))
    assert (ratio, list(interval)) == (row["speedup"], row["speedup_interval"]), "a report finds the same rounds"


class EagerFirst(Measurement):
    """A measurement that takes its first contender for eager mode."""

    @property
    def eager(self) -> str | None:
        return self.contenders[0].name

    def spent(self) -> bool:
        """A slow machine has its launches too."""
        return super().spent() and len(self.launches) >= 2 * MIN_EAGER_LAUNCHES


def test_precision_is_of_what_decides(contender: ContenderSettings) -> None:
    """Ratios to the fastest FP32 artifact and to the fastest of all; those to eager mode may be as wide as they are."""
    rng = np.random.default_rng(0)
    names = ("fp32/eager", "fp32/inductor", "ptq/inductor")
    entrants = [
        replace(contender, candidate=n.partition("/")[0], runtime=n.partition("/")[2], fp32=n.startswith("fp32"))
        for n in names
    ]
    found = Measurement(entrants, Bench(batch_sizes=(1,)), ONE_CPU, lambda share, text: None)
    found.rounds = {
        1: [
            Round(n // 2, {name: [sample(float(ms))] for name, ms in zip(names, times, strict=True)}, n)
            for n, times in enumerate(np.exp(rng.normal(0, [0.5, 0.005, 0.005], (40, 3))) * [20, 10, 5])
        ]
    }
    wide = relative_half_width(paired_ratio(ratios(found.rounds[1], *names[:2]))[1])
    assert wide > 0.2
    assert found.half_width(1) < 0.02
    found.rounds[1] = found.rounds[1][:6]
    assert found.half_width(1) is None, "too few launches for an interval"


@pytest.mark.gpu
def test_a_contender_forked_on_a_gpu(contender: ContenderSettings, started) -> None:
    """CUDA must not have been started in the process that forks."""
    protocol = Bench(batch_sizes=(2,), rounds=6, precision=None, repetitions=2, round_ms=0.0, warmup=1)
    names = ("fp32/eager", "twin/eager")
    found = measure(
        [replace(contender, candidate=n.partition("/")[0], device="cuda") for n in names],
        protocol,
        ONE_CPU,
        started=started,
    )
    assert all(row["device"] == "cuda" and row["p50_ms"] > 0 for row in found["rows"])
    assert found["noise"]["clocks"][0]["gpus"]


def test_a_contender_that_cannot_load(contender: ContenderSettings, tmp_path: Path, started) -> None:
    with pytest.raises(StageError, match=r"fp32/eager: .*none\.pt cannot be read"):
        measure([replace(contender, path=str(tmp_path / "none.pt"))], PROTOCOL, ONE_CPU, started=started)


def test_a_contender_whose_process_dies(contender: ContenderSettings, started) -> None:
    with started.launch(contender, ONE_CPU) as process:
        os.kill(process.loaded.pid, 9)
        with pytest.raises(StageError, match="its process ended"):
            process.warm_up(1, 1, cap_s=1.0)


def test_a_compiler_that_fails_leaves_no_mark_of_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The probes of the CPU go to the user's cache: one taken for a success would stay there."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("CXX", "/bin/false")
    with fork_server():
        pass
    assert not list(tmp_path.rglob("*load_ok*"))
    assert inductor_cache() == tmp_path / "cache"


def test_the_cache_is_where_torch_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    assert str(inductor_cache()) == cache_dir_utils.default_cache_dir()
