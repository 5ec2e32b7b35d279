"""Other tools' quantization: what they leave is int8, whole, and runs."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from networks import SATURATES
from torch import Tensor, nn

from raq.artifact import onnx
from raq.artifact.account import what_ran
from raq.artifact.check import float_weights_of_code, share_of_code
from raq.artifact.isolated import IsolatedProcess
from raq.artifact.metadata import Metadata
from raq.artifact.runtimes import RUNTIMES, read
from raq.errors import StageError, UserError
from raq.experiment.inputs import image_input
from raq.model.parity import sqnr_db
from raq.quantize import others
from raq.quantize.export import export_program
from raq.quantize.folding import folded_graph
from raq.quantize.others import _store_integers, quantize_by

EXAMPLE = torch.zeros(2, 3, 16, 16)


class Batches(list[tuple[Tensor, ...]]):
    """As CalibrationBatches."""

    @property
    def samples(self) -> int:
        return sum(len(batch[0]) for batch in self)


@pytest.mark.parametrize(("tool", "runtime"), [("nncf", "openvino"), ("onnxruntime", "onnxruntime")])
def test_it_runs_in_int8_and_computes_the_same(tool: str, runtime: str, tmp_path: Path) -> None:
    """All of it, by the runtime's own account; nine in ten of its weights' numbers are integers in the file."""
    pytest.importorskip(tool)
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip
    images = torch.randn(16, 3, 16, 16)
    with torch.no_grad():
        network(images * 2)
        expected = network.eval()(images)
    path = tmp_path / "artifact.onnx"
    program = export_program(folded_graph(network, EXAMPLE), EXAMPLE)
    batches: Any = Batches([(images[:8],), (images[8:],)])
    onnx.write(
        program, path, runtime, {"kind": "ptq"}, lambda model: quantize_by(tool, model, batches, reduce_range=SATURATES)
    )
    code = read(path)
    assert share_of_code(code, Metadata(code.metadata)) == 1.0
    share = float_weights_of_code(code)
    assert share is not None
    assert share < 0.1
    with IsolatedProcess(path, "cpu", 1, RUNTIMES[runtime]) as process:
        found = process(images)
        ran = what_ran(process, (image_input((3, 16, 16)),), [], None, [])
    assert ran is not None
    assert ran.executed_int8_mac_share == 1.0
    quality = sqnr_db(expected.numpy(), found.numpy())
    assert quality is not None
    assert 20 < quality < 60


def test_integers_are_those_that_the_file_rounds_to(tmp_path: Path) -> None:
    """A weight with scales by channel, rounded in the file: the same outputs with the integers in its place."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    generator = np.random.default_rng(0)
    weight = generator.normal(size=(4, 3)).astype(np.float32)
    weight[0, 0] = 0.5 * 0.01  # half a step: QuantizeLinear rounds it to even
    scale = np.array([0.01, 0.02, 0.005, 0.1], np.float32)
    tensors = {"w": weight, "s": scale, "z": np.zeros(4, np.int8)}
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["w", "s", "z"], ["q"], axis=0),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], axis=0),
            helper.make_node("Gemm", ["x", "d"], ["y"], transB=1),
        ],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 4])],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    given = {"x": generator.normal(size=(2, 3)).astype(np.float32)}
    before = onnxruntime.InferenceSession(model.SerializeToString()).run(None, given)[0]
    _store_integers(model)
    assert [node.op_type for node in model.graph.node] == ["DequantizeLinear", "Gemm"]
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert "w" not in stored
    assert stored["q"].dtype == np.int8
    assert stored["q"][0, 0] == 0
    after = onnxruntime.InferenceSession(model.SerializeToString()).run(None, given)[0]
    assert np.array_equal(before, after)


def test_a_tool_that_fails_or_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def fail(*asked: object) -> None:
        seen.append(os.environ.get("NNCF_CI"))
        raise ValueError("no such operator")

    monkeypatch.delenv("NNCF_CI", raising=False)
    model: Any = SimpleNamespace(CopyFrom=None)
    nothing: Any = Batches()
    monkeypatch.setitem(others.QUANTIZERS, "onnxruntime", fail)
    with pytest.raises(StageError, match="onnxruntime cannot quantize the network: no such operator"):
        quantize_by("onnxruntime", model, nothing, reduce_range=False)
    assert seen == ["1"], "meanwhile NNCF reports nothing to its makers"
    assert "NNCF_CI" not in os.environ
    monkeypatch.setitem(others.QUANTIZERS, "no_such_tool", fail)
    with pytest.raises(UserError, match="the library no_such_tool cannot be used"):
        quantize_by("no_such_tool", model, nothing, reduce_range=False)
