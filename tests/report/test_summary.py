"""The table of a run on made-up measurements, at two widths; what is said below it."""

import io
from copy import deepcopy

import pytest
from rich.console import Console

from raq.report.bench import disturbed_warning, print_bench
from raq.report.console import print_summary
from raq.report.ratios import SharedRounds
from raq.report.summary import set_against_best_fp32


def candidate(name: str, top1: float, rounds: list[float], weight_mb: float, drop: tuple[float, float, float]) -> dict:
    baseline = [700.0, 710.0, 690.0, 705.0, 695.0, 700.0][: len(rounds)]
    speedup = sorted(b / r for b, r in zip(baseline, rounds, strict=True))
    row = {
        "runtime": "inductor", "device": "cpu", "batch_size": 128, "threads": 2, "rounds": len(rounds),
        "mean_ms": rounds[0], "std_ms": 1.0, "p50_ms": rounds[0], "p90_ms": None, "p99_ms": None,
        "speedup": speedup[len(speedup) // 2],
        "speedup_interval": [speedup[0], speedup[-1]] if len(rounds) > 5 else None,
        "baseline": "fp32/eager", "round_p50_ms": rounds, "round_launch": list(range(len(rounds))),
        "round_disturbed": [False] * len(rounds), "disturbed_rounds": 0, "calm": True,
    }  # fmt: skip
    artifact = {"target": "cpu", "path": "a.pt2", "weight_bytes": weight_mb * 1e6, "size_bytes": weight_mb * 1e6 + 2e6,
                "int8_mac_share": 1.0, "note": None}  # fmt: skip
    metric = {"name": "top1", "unit": "points", "value": top1, "interval": [top1 - 0.01, top1 + 0.01],
              "drop": drop[0], "drop_interval": [drop[1], drop[2]]}  # fmt: skip
    return {
        "name": name, "kind": name, "top1": top1, "top1_interval": [top1 - 0.01, top1 + 0.01], "test_images": 10_000,
        "same_accuracy_p": 0.001 if drop[1] > 0 else 0.5,
        "metric": metric, "drop_points": drop[0], "drop_interval": [drop[1], drop[2]], "artifacts": [artifact],
        "latency": [row], "parity": [],
    }  # fmt: skip


FP32 = candidate("fp32", 0.90, [400.0, 401.0, 399.0, 400.0, 402.0, 398.0], 44.7, (0.0, 0.0, 0.0))
FAST = [100.0, 101.0, 99.0, 100.0, 100.5, 99.5]
VERDICT = {"choice": "ptq", "why": "Ship ptq: it is [fast].", "claims": [], "choices": []}


PROFILE = {
    "candidate": "ptq", "batch_size": 8, "total_ms": 10.0, "other_ms": 4.0, "reorder_ms": 1.0, "other_kernels_ms": 0.5,
    "outside_onednn_ms": 2.5, "gops": 450.0, "peak_gops": 900.0,
}  # fmt: skip


def test_seven_bits_are_said() -> None:
    ptq = candidate("ptq", 0.899, FAST, 11.2, (0.1, -0.1, 0.3))
    summary = {
        "run": "r", "experiment": "e", "candidates": [FP32, ptq], "verdict": VERDICT,
        "environment": {"machine": {"cpu": "a cpu", "cpus": 2, "gpus": []}}, "measurement": [],
    }  # fmt: skip
    for narrow, said in ((True, True), (False, False), (None, False)):
        ptq["reduce_range"] = narrow
        text = io.StringIO()
        print_summary(Console(file=text, width=120), summary, details=True)
        assert ("ptq: activations have 7 bits (reduce_range)" in text.getvalue()) is said


def test_how_the_measurement_went_is_under_the_table() -> None:
    ptq = candidate("ptq", 0.899, FAST, 11.2, (0.1, -0.1, 0.3))
    ptq["latency"][0]["round_disturbed"] = [True] * 5 + [False]
    noise = {"disturbed_slots": 7, "repeated_slots": 5, "slots": 20, "repeating_s": 1.0, "stolen_cpus": None,
             "waited": {"mean": 0.01, "max": 0.21}, "foreign_cpus": {"mean": 0.01, "max": 0.4}}  # fmt: skip
    measurement = {"device": "cpu", "protocol": "interleaved", "stopped_by": "budget", "elapsed_s": 61.0,
                   "launches": 6, "noise": noise, "profiles": [PROFILE]}  # fmt: skip
    summary = {
        "run": "r", "experiment": "e", "candidates": [FP32, ptq], "verdict": VERDICT,
        "environment": {"machine": {"cpu": "a cpu", "cpus": 2, "gpus": []}}, "measurement": [measurement],
    }  # fmt: skip
    text = io.StringIO()
    print_summary(Console(file=text, width=100), summary, details=True)
    shown = " ".join(text.getvalue().split())
    assert "cpu: 6 launches, 61 s: the time was up (budget) before all asked for was reached" in shown
    assert "7 of 20 samples were disturbed (at worst a thread waited 21% of the time, others took 0.4 CPUs)" in shown
    assert "5 samples were taken again" in shown
    assert "DISTURBED: ptq/inductor over fp32/inductor at batch 128: 5 of 6 rounds were disturbed" in shown
    apart = disturbed_warning(
        [("ptq over fp32", SharedRounds(6, 6, 5, 5)), ("qat over fp32", SharedRounds(60, 7, 53, 0))]
    )
    assert apart and "DISTURBED: ptq over fp32: in 5 of 6 rounds the CPUs were far apart" in apart


@pytest.mark.parametrize("width", [80, 160])
def test_the_table_of_raq_bench(width: int) -> None:
    first = {**FP32["latency"][0], "candidate": "a[int8]", "baseline": "a[int8]/inductor", "speedup": 1.0,
             "samples_needed": {"p90": 29, "p99": 299}, "load_ms": 12.0, "peak_bytes": 4e8,
             "speedup_interval": [1.0, 1.0]}  # fmt: skip
    slower = {**first, "candidate": "b", "speedup": 0.97, "speedup_interval": [0.96, 0.98]}
    same = {**first, "candidate": "c", "speedup": 1.001, "speedup_interval": [0.99, 1.01]}
    noise = {"disturbed_slots": 0}
    found = {"rows": [first, slower, same], "stopped_by": "precision", "launches": 6, "elapsed_s": 9.0, "noise": noise}
    text = io.StringIO()
    print_bench(Console(file=text, width=width), found)
    shown = text.getvalue()
    assert "…" not in shown
    assert "a[int8]" in shown, "names are no markup"
    assert "of 29+" in shown
    assert ("peak MB" in shown) is (width == 160)
    assert "b at batch 128 on cpu: slower than a[int8], 0.970 times its speed (0.960 to 0.980)" in shown
    assert "c at batch 128 on cpu: as fast as a[int8] within 2%" in shown
    assert "6 launches, 9 s: the precision asked for was reached" in shown


@pytest.mark.parametrize("width", [80, 160])
def test_no_cell_is_cut_off(width: int) -> None:
    candidates = [deepcopy(FP32), candidate("ptq", 0.899, FAST, 11.2, (0.1, -0.1, 0.3))]
    batch_1 = [{**c["latency"][0], "batch_size": 1, "runtime": "inductor"} for c in candidates]
    for c, row in zip(candidates, batch_1, strict=True):
        c["latency"] = [row, *c["latency"]]
    set_against_best_fp32(candidates)
    summary = {
        "run": "r", "experiment": "e", "candidates": candidates, "verdict": VERDICT,
        "environment": {"machine": {"cpu": "a cpu", "cpus": 2, "gpus": []}}, "measurement": [],
    }  # fmt: skip
    text = io.StringIO()
    print_summary(Console(file=text, width=width), summary, details=True)
    assert "…" not in text.getvalue()
    assert max(len(line) for line in text.getvalue().splitlines()) <= width
    for cell in ("44.70", "89.90", "-0.10..0.30", "100%", "cpu, batch 128", "100.0 ± 1.0", "7.03 6.92..7.05"):
        assert cell in text.getvalue()
    over = candidates[1]["latency"][1]
    low, high = over["speedup_over_best_fp32_interval"]
    assert f"{over['speedup_over_best_fp32']:.2f} {low:.2f}..{high:.2f}" in text.getvalue(), "over the best FP32 too"


def test_throughput_half_precision_and_settings_are_below_the_table() -> None:
    """At 80 columns: no cell is cut off; what was disturbed, and under which variables it was measured."""
    half = candidate("bf16", 0.899, FAST, 22.3, (0.1, -0.1, 0.3)) | {"kind": "half"}
    half["artifacts"][0] |= {"executed_half_mac_share": 0.98, "executed_int8_mac_share": 0.0}
    row = {
        "candidate": "fp32", "runtime": "eager", "device": "cpu", "batch_size": 128, "scenario": "offline",
        "streams": 2,
        "images_per_s": 100.0, "launch_images_per_s": [100.0] * 4, "waited_share": 0.0, "speedup": 1.0,
        "speedup_interval": None, "baseline": "fp32/eager", "speedup_over_best_fp32": 0.5,
        "speedup_over_best_fp32_interval": [0.4, 0.6], "best_fp32": "fp32/inductor",
    }  # fmt: skip
    plain = deepcopy(FP32) | {"throughput": [row]}
    half["throughput"] = [
        row | {"candidate": "bf16", "runtime": "inductor", "images_per_s": 345.6, "speedup": 3.456,
               "speedup_interval": [3.4, 3.5], "speedup_over_best_fp32": 1.5,
               "speedup_over_best_fp32_interval": [1.4, 1.6], "waited_share": 0.25}
    ]  # fmt: skip
    machine = {"cpu": "a cpu", "cpus": 2, "gpus": [], "settings": {"ONEDNN_MAX_CPU_ISA": "AVX2"}}
    summary = {
        "run": "r", "experiment": "e", "candidates": [plain, half], "environment": {"machine": machine},
        "verdict": VERDICT | {"choice": "bf16"}, "measurement": [{"device": "cpu", "no_throughput": "it [broke]"}],
    }  # fmt: skip
    text = io.StringIO()
    print_summary(Console(file=text, width=80), summary)
    shown = text.getvalue()
    assert "…" not in shown
    words = " ".join(shown.split())
    assert "throughput, 2 streams batch images/s over fp32/eager over best FP32" in words
    assert "fp32/eager 128 100 0.50 0.40..0.60" in words
    assert "bf16/inductor 128 346 3.46 3.40..3.50 1.50 1.40..1.60" in words
    assert "DISTURBED: 1 of 2 throughputs: a stream waited 25% of the time" in words
    assert "16-bit kernels (reported by oneDNN, or the runtime itself), of all MACs: bf16 98.0%" in words
    assert "int8 kernels" not in words
    assert "measured with these environment variables set: ONEDNN_MAX_CPU_ISA=AVX2" in words
    assert "throughput is not known: it [broke]" in words
