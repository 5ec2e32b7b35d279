"""Where a call's time goes: known lines of oneDNN, a real artifact, and the CPU's peak."""

import platform
import subprocess
from pathlib import Path

import pytest
import torch
from torch import nn

from raq.artifact import inductor
from raq.artifact.executed import Execution, KnownLayer
from raq.bench.peak import CHAINS, SOURCE, Peak, _parts, measure_peak
from raq.bench.profile import _profile, profile
from raq.environment import Machine, compiler_command
from raq.errors import UserError
from raq.quantize.export import export_network
from raq.report.profile import print_profile
from raq.report.terminal import plain_console


def call(*ms: float) -> list[Execution]:
    """An int8 convolution of a million multiply-accumulates, a reorder and an addition that took so long."""
    kernels = (("convolution", "u8", "s8", 1_000_000), ("reorder", "f32", "u8", None), ("binary", "f32", "f32", 0))
    return [
        Execution(primitive, "jit", source, weights, macs, ms=took)
        for (primitive, source, weights, macs), took in zip(kernels, ms, strict=True)
    ]


def test_the_parts_of_a_call_add_up() -> None:
    calls = [call(0.2, 0.1, 0.05), call(0.1, 0.1, 0.05), call(0.1, 0.3, 0.05)]
    found = _profile("a.pt2", 2, 1, [1.0, 0.5, 0.7], calls, [KnownLayer("conv1", 500_000)], Peak(1, 100.0, None))
    assert (found.call_ms, found.multiplying_ms, found.reorder_ms, found.other_kernels_ms) == (0.7, 0.1, 0.1, 0.05)
    assert found.elsewhere_ms == pytest.approx(0.45)
    assert found.reorders == 1
    convolution = found.kernels[0]
    assert (convolution.layer, convolution.int8) == ("conv1", True)
    assert convolution.gops == pytest.approx(20.0), "two million operations in a tenth of a millisecond"
    assert convolution.peak_share == pytest.approx(0.2)
    assert found.gops == pytest.approx(2 / 0.7)
    record = found.as_record()
    assert (record["total_ms"], record["peak_gops"], record["reorders_per_call"]) == (0.7, 100.0, 1)
    assert [(one["name"], one["dtype"], one["macs"]) for one in record["layers"]] == [("conv1", "u8", 1_000_000)]
    assert record["other_ms"] == pytest.approx(0.6)


def test_a_real_artifact(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    ).eval()
    path = tmp_path / "a.pt2"
    inductor.lower(export_network(network, torch.zeros(2, 3, 16, 16)), path, {"input": [3, 16, 16]})
    found = profile(path, batch_size=2, threads=1)
    (convolution,) = [kernel for kernel in found.kernels if kernel.primitive == "convolution"]
    assert convolution.ms > 0
    assert not convolution.int8
    assert found.calls >= 5
    parts = found.multiplying_ms + found.reorder_ms + found.other_kernels_ms + found.elsewhere_ms
    assert parts == pytest.approx(found.call_ms)
    print_profile(plain_console(), found)
    assert "a call of 2 takes" in " ".join(capsys.readouterr().out.split())


def test_what_cannot_be_profiled(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such file"):
        profile(tmp_path / "none.pt2", 1)


def test_the_peak_of_a_cpu_without_a_compiler_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/bin/false")
    assert measure_peak(1) == Peak(1, None, None)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the loops are of x86")
@pytest.mark.parametrize(
    ("loop", "instruction"), [("avx512_vnni", "vpdpbusd"), ("avx512f", "vfmadd"), ("avx2", "vfmadd")]
)
def test_the_loops_of_the_peak_touch_no_memory(loop: str, instruction: str, tmp_path: Path) -> None:
    """Ten chains in registers: with an array of them the compiler loads and stores each step, at half the speed."""
    source = tmp_path / "peak.cpp"
    source.write_text(SOURCE % _parts(loop))
    flags = ["-O2", "-mavx512vnni", "-mavx512f", "-mfma", "-mavx2", "-S", str(source), "-o", "-"]
    found = subprocess.run([*compiler_command(), *flags], check=True, capture_output=True, text=True).stdout
    lines = [line.split() for line in found.splitlines()]
    at = [number for number, line in enumerate(lines) if line and line[0].startswith(instruction)]
    assert len(at) == CHAINS
    inside = [line for line in lines[at[0] : at[-1] + 1] if line and not line[0].startswith((".", "#", "dec", "sub"))]
    assert not [line for line in inside if any("(" in operand for operand in line[1:])]
    assert len({line.rpartition(",")[2] for line in (" ".join(lines[n]) for n in at)}) == CHAINS


def test_a_cpu_without_vnni_has_no_peak_in_int8() -> None:
    found = measure_peak(1, Machine("old", "x86_64", ["avx2"], 1))
    assert found.int8_gops is None
    assert found.fp32_gops is None or found.fp32_gops > 1
