"""Backends beside x86: what their quantizers annotate, and XNNPACK's artifact read, run, checked and measured."""

import shutil
from pathlib import Path

import pytest
import torch
from networks import EXAMPLE, small
from torchao.quantization.pt2e import FakeQuantizeBase

from raq.artifact import audit, check, executorch, runtimes, scales, sizes
from raq.artifact.isolated import IsolatedProcess
from raq.bench.artifacts import bench_artifacts, bench_settings
from raq.errors import StageError, UserError
from raq.experiment.ptq import Calibration
from raq.model.parity import sqnr_db
from raq.quantize import convert, ptq, qat
from raq.quantize.export import export_program

METADATA = {"candidate": "ptq", "model": "small", "input": [3, 32, 32]}


def quantized_for(backend: str, digits):
    torch.manual_seed(0)
    prepared = ptq.prepare(small(), EXAMPLE, backend, Calibration(observer="minmax"), reduce_range=False)
    ptq.calibrate(prepared, digits, Calibration(size=64), seed=0)
    return convert.convert(prepared, EXAMPLE)


@pytest.fixture(scope="module")
def program(digits):
    pytest.importorskip("executorch")
    return quantized_for("xnnpack", digits)


@pytest.fixture(scope="module")
def artifact_pte(program, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pte") / "a.pte"
    executorch.lower(
        program, path, METADATA, max_batch=40
    )  # torch guesses a memory format by whether a batch is below 16
    return path


@pytest.mark.parametrize(
    ("backend", "kinds"),
    [
        ("arm", {"quantize_per_tensor", "dequantize_per_tensor"}),
        ("xnnpack", {"quantize_per_tensor", "dequantize_per_tensor", "dequantize_per_channel"}),
    ],
)
def test_what_the_quantizers_annotate(digits, backend: str, kinds: set[str]) -> None:
    """All layers, activations in int8 (x86 has uint8), weights a tensor or a channel at a time."""
    if backend == "xnnpack":
        pytest.importorskip("executorch")
    found = quantized_for(backend, digits)
    assert [layer.annotated for layer in audit.audit_graph(found)] == [True, True, True]
    nodes = [n for n in found.graph.nodes if "quantize_per_" in str(n.target)]
    assert {str(n.target).split(".")[1] for n in nodes} == kinds
    bounds = {(n.args[3], n.args[4]) for n in nodes if "quantize_per_tensor" in str(n.target)}
    assert bounds == {(-128, 127)}


@pytest.mark.parametrize("backend", ["arm", "xnnpack"])
def test_quantization_aware_graphs(backend: str) -> None:
    """A fake quantizer for each layer's weight and for what it reads; int8 throughout."""
    if backend == "xnnpack":
        pytest.importorskip("executorch")
    prepared = qat.prepare_qat(small(), EXAMPLE, backend, reduce_range=False)
    found = [m for m in prepared.modules() if isinstance(m, FakeQuantizeBase)]
    weights = [m for m in found if m.qscheme in (torch.per_channel_symmetric, torch.per_tensor_symmetric)]
    assert len(weights) == 3
    assert len(found) >= 6
    assert {m.dtype for m in found} == {torch.int8}
    assert {m.is_per_channel for m in weights} == {backend == "xnnpack"}


def test_the_pte_calls_integer_nodes_for_all_layers(program, artifact_pte: Path) -> None:
    code = scales.name_scales(runtimes.read(artifact_pte), program)
    found = audit.audit(program, code)
    assert found.int8_mac_share == 1.0
    assert found.problem == ""
    assert [layer.int8 for layer in found.layers] == [True, True, True]
    meant = {layer.name: layer.macs for layer in audit.audit_graph(program)}
    assert sorted(call.macs for call in code.calls) == sorted(meant.values())
    assert all(call.weight_scale in program.state_dict for call in code.calls), "scales are known by their bytes"
    assert code.metadata["raq"]["max_batch"] == 40
    counted = sizes.ledger(code)
    assert counted.weight_bytes == sum(t.numel() for t in program.state_dict.values() if t.dtype == torch.int8)


def test_the_pte_computes_what_was_converted(program, artifact_pte: Path) -> None:
    images = torch.randn(91, 3, 32, 32)
    expected = program.module()(images)
    with IsolatedProcess(artifact_pte, threads=2) as process:
        assert process.loaded.foreign == []
        given = runtimes.in_parts(process, 40)(images)
    assert sqnr_db(expected.detach().numpy(), given.numpy()) is None or sqnr_db(expected.numpy(), given.numpy()) > 30


def test_float_layers_are_seen_in_a_pte(tmp_path: Path) -> None:
    """FP32 offered as int8: no node is an integer one."""
    pytest.importorskip("executorch")
    executorch.lower(export_program(small(), EXAMPLE), tmp_path / "a.pte", METADATA, max_batch=8)
    code = runtimes.read(tmp_path / "a.pte")
    assert [call.integer for call in code.calls] == [False, False, False]
    found = check.check(tmp_path / "a.pte", tmp_path / "results", run=False, require=0.95)
    assert found["int8_mac_share"] == 0
    assert "not quantized: offered as ptq" in found["problems"][0]


@pytest.mark.parametrize("cut", [1, 3000])
def test_a_truncated_pte(artifact_pte: Path, tmp_path: Path, cut: int) -> None:
    (tmp_path / "a.pte").write_bytes(artifact_pte.read_bytes()[:-cut])
    with pytest.raises(StageError, match="not a readable"):
        runtimes.read(tmp_path / "a.pte")


def test_check_and_bench_take_a_pte(artifact_pte: Path, tmp_path: Path) -> None:
    shutil.copy(artifact_pte, tmp_path / "any.name")
    found = check.check(tmp_path / "any.name", tmp_path / "results", run=True, require=0.95)
    assert found["problems"] == []
    assert found["ran"]["runtime"] == "executorch"
    settings = bench_settings(batch_sizes=[2], budget_s=0.5)
    measured = bench_artifacts([artifact_pte, tmp_path / "any.name"], settings)
    assert [row["runtime"] for row in measured["rows"]] == ["executorch", "executorch"]
    with pytest.raises(UserError, match="takes at most 40 images"):
        bench_artifacts([artifact_pte], bench_settings(batch_sizes=[41]))
