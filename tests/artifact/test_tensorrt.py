"""TensorRT as far as a machine without it goes: the file that engines are built of, the package, the account, the plan.

No engine is built here: that needs a GPU.
"""

import json
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from networks import EXAMPLE
from torch import nn

pytest.importorskip("onnxruntime")  # and onnx

from raq.artifact import onnx, runtimes, scales, tensorrt
from raq.artifact.account import reported
from raq.artifact.alone_tensorrt import kernels
from raq.artifact.audit import audit
from raq.artifact.executed import KnownLayer
from raq.artifact.isolated import ReportedKernel
from raq.bench.messages import ContenderSettings
from raq.bench.on_gpu import ways
from raq.errors import StageError, UserError
from raq.experiment.inputs import image_input
from raq.experiment.measurement import Bench
from raq.experiment.ptq import Calibration
from raq.model.parity import sqnr_db
from raq.quantize import convert, ptq

METADATA = {"candidate": "ptq", "kind": "ptq", "inputs": [image_input((3, 32, 32)).plain()]}
ENGINE = b"not an engine"


class Shortcut(nn.Module):
    """Convolutions around a shortcut, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.last = nn.Linear(16, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        start = torch.relu(self.first(images))
        return self.last(torch.relu(self.second(start) + start).mean((2, 3)))


@pytest.fixture(scope="module")
def program():
    torch.manual_seed(0)
    prepared = ptq.prepare(Shortcut().eval(), EXAMPLE, "cuda", Calibration(observer="minmax"), reduce_range=False)
    with torch.no_grad():
        prepared(torch.randn(64, 3, 32, 32))
    return convert.convert(prepared, EXAMPLE)


@pytest.fixture(scope="module")
def graph(program, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graph") / "model.onnx"
    onnx.write(program, path, "tensorrt", {**METADATA, "max_batch": 8})
    return path


@pytest.fixture(scope="module")
def package(graph: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("package") / "artifact.trt"
    tensorrt.pack(graph.read_bytes(), ENGINE, path)
    return path


def test_the_file_is_what_tensorrt_takes(program, graph: Path) -> None:
    """Its rules: int8 alone, every zero point 0, each layer between pairs; and it computes what the program does."""
    import onnx as library
    import onnxruntime

    found = library.load(str(graph)).graph
    tensors = {one.name: library.numpy_helper.to_array(one) for one in found.initializer}
    pairs = [node for node in found.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    zeros = [tensors[node.input[2]] for node in pairs if len(node.input) > 2]
    assert len(pairs) >= 8
    assert len(zeros) == len(pairs), "a type that is left out would be uint8"
    assert {str(zero.dtype) for zero in zeros} == {"int8"}
    assert not any(zero.any() for zero in zeros)
    images = torch.randn(5, 3, 32, 32)
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    (answer,) = session.run(None, {given.name: images.numpy()})
    assert sqnr_db(program.module()(images).detach().numpy(), answer) > 35
    code = scales.name_scales(runtimes.read(graph), program)
    assert audit(program, code).int8_mac_share == pytest.approx(1.0)


def test_a_package_says_what_it_is(package: Path, graph: Path) -> None:
    assert runtimes.runtime_of_file(package).name == "tensorrt"
    metadata, code = runtimes.read_metadata(package), runtimes.read(package)
    assert (metadata.runtime, metadata.max_batch) == ("tensorrt", 8)
    assert (code.native_bytes, code.file_bytes) == (len(ENGINE), package.stat().st_size)
    assert code.calls == runtimes.read(graph).calls
    with zipfile.ZipFile(package) as found:
        assert found.read("model.engine") == ENGINE


def test_a_damaged_package_is_refused(package: Path, tmp_path: Path) -> None:
    whole = package.read_bytes()
    torn = tmp_path / "torn.trt"
    torn.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StageError, match="not a readable package"):
        runtimes.read(torn)
    wrong = tmp_path / "wrong.trt"
    tensorrt.pack(b"no graph", ENGINE, wrong)
    with pytest.raises(StageError, match="not a readable ONNX file"):
        runtimes.read(wrong)
    half = tmp_path / "half.trt"
    with zipfile.ZipFile(half, "w") as archive:
        archive.writestr("model.engine", ENGINE)
    with pytest.raises(StageError, match="not a readable package"):
        runtimes.read_metadata(half)


def test_an_engine_of_another_version_is_refused(graph: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.trt"
    content = graph.read_bytes()
    assert tensorrt.refuse(_packed(content, other)) is None, "it does not say which"
    import onnx as library

    model = library.load(str(graph))
    (entry,) = model.metadata_props
    entry.value = json.dumps({**json.loads(entry.value), "tensorrt": "1.2.3"})
    with pytest.raises(StageError, match=r"built by TensorRT 1\.2\.3, this is"):
        tensorrt.refuse(_packed(model.SerializeToString(), other))


def _packed(graph: bytes, path: Path) -> Path:
    tensorrt.pack(graph, ENGINE, path)
    return path


def layer(name: str, kind: str, reads: str, nodes: list[str] | None = None, tactic: str = "") -> dict[str, object]:
    """As the inspector describes one: TensorRT's developer guide, and engines that people have published."""
    found = {"Name": name, "LayerType": kind, "Inputs": [{"Name": "x", "Format/Datatype": reads}], "TacticName": tactic}
    return {**found, "Metadata": "\x1e".join(f"[ONNX Layer: {one}]" for one in nodes or [])}


def test_what_an_engine_says_of_itself_is_read(graph: Path) -> None:
    """Kernels of the file's own nodes; what moves data is none; what cannot be told counts as float."""
    calls = runtimes.read(graph).calls
    first, second, last = (call.names[0] for call in calls)
    int8, fp32 = "Thirty-two wide channel vectorized row major Int8 format", "Row major linear FP32"
    described = {
        "Layers": [
            layer(f"Reformatting CopyNode for Input Tensor 0 to {first}", "Reformat", fp32, [first]),
            layer(f"{first} + node_relu", "CaskConvolution", int8, [first, "node_relu"], "sm80_xmma_fprop_i8i8"),
            layer(f"{second} + node_add", "CaskConvolution", fp32, tactic="sm80_xmma_fprop_tf32"),
            layer(last, "gemm", "Int8", [last]),
            "a kernel by name alone",
        ],
        "Bindings": ["images", "logits"],
    }
    found = [ReportedKernel.model_validate(one) for one in kernels(json.dumps(described))]
    assert [one.kernel for one in found] == [
        "sm80_xmma_fprop_i8i8", "sm80_xmma_fprop_tf32", "gemm", "a kernel by name alone",
    ]  # fmt: skip
    assert [one.int8 for one in found] == [True, False, True, False]
    layers = [KnownLayer(f"layer {n}", call.macs) for n, call in enumerate(calls)]
    total = sum(call.macs for call in calls)
    ran = reported(found, calls, total, layers)
    assert [one.int8 for one in ran.executed_layers] == [True, False, True]
    assert ran.executed_int8_mac_share == pytest.approx((calls[0].macs + calls[2].macs) / total)


def test_sizes_that_an_engine_is_tuned_for() -> None:
    assert tensorrt.tuned_sizes(1) == [(1, 1, 1)]
    assert tensorrt.tuned_sizes(64) == [(1, 1, 1), (2, 64, 64)], "a call takes the first or the second, by its size"


def test_its_fp32_is_measured_once() -> None:
    """Whether an engine computes in TF32 was decided when it was built."""
    own = ContenderSettings("fp32-tensorrt", "tensorrt", "cuda", "", (), 1, "", 0, None, fp32=True)
    assert [one.way for one in ways([own], Bench())] == ["tensorrt", "tensorrt+graph"]
    assert "inductor+tf32" in [one.way for one in ways([replace(own, runtime="inductor")], Bench())]


def test_without_the_library_it_says_what_to_do() -> None:
    try:
        import tensorrt as library
    except ImportError:
        with pytest.raises(UserError, match="tensorrt cannot be used") as refused:
            tensorrt.prepare()
        assert "pip install 'raq[tensorrt]'" in refused.value.hint
    else:
        assert library.__version__
