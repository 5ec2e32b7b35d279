"""TensorRT as far as a machine without it goes: the file that engines are built of, the package, the account.

No engine is built or run here: that needs a GPU. How one is called is tested on something that answers as TensorRT's
bindings do, and computes nothing.
"""

import json
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from networks import EXAMPLE
from torch import nn

pytest.importorskip("onnxruntime")  # and onnx

from raq.artifact import alone_tensorrt, gpu_kind, onnx, runtimes, scales, tensorrt
from raq.artifact.account import reported
from raq.artifact.alone_tensorrt import Engine, kernels
from raq.artifact.audit import audit
from raq.artifact.executed import KnownLayer
from raq.artifact.isolated import ReportedKernel
from raq.bench.messages import ContenderSettings
from raq.bench.on_gpu import ways
from raq.errors import StageError, UserError
from raq.experiment.inputs import Axis, InputSpec, image_input
from raq.experiment.measurement import Bench
from raq.experiment.ptq import Calibration
from raq.model.parity import sqnr_db
from raq.quantize import convert, ptq
from raq.quantize.half import half_program

METADATA = {"candidate": "ptq", "kind": "ptq", "inputs": [image_input((3, 32, 32)).plain()]}
ABOUT = {**METADATA, "device": "cuda", "max_batch": 8, "batch_sizes": [1, 8], "runtime": "tensorrt"}
ENGINE, ALIGNED = b"not an engine", 64  # bytes: how a CPU's tensors lie


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
    onnx.write(program, path, "tensorrt", ABOUT)
    return path


def packed(graph: bytes, path: Path, **more: object) -> Path:
    tensorrt.pack(graph, ENGINE, {**ABOUT, **more}, path)
    return path


@pytest.fixture(scope="module")
def package(graph: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(graph.read_bytes(), tmp_path_factory.mktemp("package") / "artifact.trt")


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


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_files_of_16_bits_are_valid(dtype: str, tmp_path: Path) -> None:
    import onnx as library

    path = tmp_path / "half.onnx"
    onnx.write(half_program(Shortcut().eval(), EXAMPLE, dtype), path, "tensorrt", ABOUT, opset=tensorrt.HALF_OPSET)
    found = library.load(str(path))
    library.checker.check_model(found, full_check=True)
    named = {library.TensorProto.DataType.Name(one.data_type).lower() for one in found.graph.initializer if one.dims}
    assert dtype in named


def test_a_package_says_what_it_is(package: Path, graph: Path) -> None:
    assert runtimes.runtime_of_file(package).name == "tensorrt"
    metadata, code = runtimes.read_metadata(package), runtimes.read(package)
    assert (metadata.runtime, metadata.max_batch, metadata.device) == ("tensorrt", 8, "cuda")
    assert (code.native_bytes, code.file_bytes) == (len(ENGINE), package.stat().st_size)
    assert code.calls == runtimes.read(graph).calls


def test_a_damaged_package_is_refused(package: Path, tmp_path: Path) -> None:
    whole = bytearray(package.read_bytes())
    torn = tmp_path / "torn.trt"
    torn.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StageError, match="not a readable package"):
        runtimes.read(torn)
    whole[whole.index(ENGINE)] ^= 1
    torn.write_bytes(whole)
    with pytest.raises(StageError, match="not a readable package: Bad CRC"):
        runtimes.read(torn)
    with pytest.raises(StageError, match="not a readable ONNX file"):
        runtimes.read(packed(b"no graph", tmp_path / "wrong.trt"))
    with zipfile.ZipFile(torn, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.engine", ENGINE)
        archive.writestr("about.json", "[" * 5000)
    for reads in (runtimes.read, runtimes.read_metadata):
        with pytest.raises(StageError, match="not a readable package"):
            reads(torn)


def test_an_engine_for_another_place_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt, "_version", lambda: "10.9")
    monkeypatch.setattr(gpu_kind, "gpu_kind", lambda: "H200, 9.0")
    tensorrt.refuse(packed(b"", tmp_path / "same.trt", tensorrt="10.9", gpu="H200, 9.0"))
    tensorrt.refuse(packed(b"", tmp_path / "silent.trt"))
    with pytest.raises(StageError, match=r"for TensorRT 11\.4, this is 10\.9"):
        tensorrt.refuse(packed(b"", tmp_path / "a.trt", tensorrt="11.4", gpu="H200, 9.0"))
    with pytest.raises(StageError, match=r"for the GPU A100, 8\.0, this is H200"):
        tensorrt.refuse(packed(b"", tmp_path / "b.trt", tensorrt="10.9", gpu="A100, 8.0"))


def test_inputs_that_an_engine_would_misread_are_refused() -> None:
    with pytest.raises(StageError, match="are float64"):
        tensorrt._refuse_inputs((InputSpec("x", (4,), "float64"),))
    with pytest.raises(StageError, match="vary in size"):
        tensorrt._refuse_inputs((InputSpec("x", (4,), "int64", axes=(Axis(0, "words", 1, 8),)),))
    tensorrt._refuse_inputs((image_input((3, 8, 8)), InputSpec("x", (4,), "int64")))


def layer(name: str, kind: str, reads: str, nodes: list[str] | None = None, tactic: str = "") -> dict[str, object]:
    """As the inspector describes one: TensorRT's developer guide, and engines that people have published."""
    found = {"Name": name, "LayerType": kind, "Inputs": [{"Name": "x", "Format/Datatype": reads}], "TacticName": tactic}
    return {**found, "Metadata": "\x1e".join(f"[ONNX Layer: {one}]" for one in nodes or [])}


def test_what_an_engine_says_of_itself_is_read(graph: Path) -> None:
    """Kernels of the file's own nodes; what does not multiply is none, even if it has a layer's name."""
    calls = runtimes.read(graph).calls
    first, second, last = (call.names[0] for call in calls)
    int8, fp32 = "Thirty-two wide channel vectorized row major Int8 format", "Row major linear FP32"
    layers = [
        layer(f"Reformatting CopyNode for Input Tensor 0 to {first}", "Reformat", fp32, [first]),
        layer(f"{first} + node_relu", "CaskConvolution", int8, [first, "node_relu"], "sm80_xmma_fprop_i8i8"),
        layer(f"{second} + node_add", "CaskConvolution", fp32, tactic="sm80_xmma_fprop_tf32"),
        layer(last, "gemm", "Int8", [last]),
        layer("__myl_Move", "kgen", fp32, [last], "__myl_Move_0x1"),
        "PWN(an addition by name alone)",
    ]
    found = read_kernels(layers)
    assert [one.kernel for one in found] == ["sm80_xmma_fprop_i8i8", "sm80_xmma_fprop_tf32", "gemm"]
    assert [one.int8 for one in found] == [True, False, True]
    total = sum(call.macs for call in calls)
    known = [KnownLayer(f"layer {n}", call.macs) for n, call in enumerate(calls)]
    ran = reported(found, calls, total, known)
    assert [one.int8 for one in ran.executed_layers] == [True, False, True]
    assert ran.executed_int8_mac_share == pytest.approx((calls[0].macs + calls[2].macs) / total)


def test_types_that_are_not_shown_are_told_by_the_kernels_name_or_not_at_all(graph: Path) -> None:
    """With shapes that vary an inspector shows no types; and separators may be control characters as they are."""
    calls = runtimes.read(graph).calls
    first, second, last = (call.names[0] for call in calls)
    hidden = "N/A due to dynamic shapes"
    told = [
        layer(first, "CaskConvolution", hidden, [first], "sm80_xmma_fprop_implicit_gemm_i8i8_i8i32_f32_nhwckrsc"),
        layer(second, "CaskConvolution", hidden, [second], "sm80_xmma_fprop_implicit_gemm_f16f16_f16f32"),
        {**layer(last, "CaskGemmMatrixMultiply", hidden, [last]), "Weights": {"Type": "Int8", "Count": 160}},
    ]
    assert [one.int8 for one in read_kernels(told)] == [True, False, True]
    assert [one.int8 for one in read_kernels([{**told[0], "Metadata": None, "Inputs": None}])] == [True]
    opaque = layer("{ForeignNode[a...b]}", "Myelin", hidden, [first, second, last])
    for unknown in (read_kernels([opaque]), read_kernels("nothing of that kind")):
        assert [one.int8 for one in unknown] == [None]
        ran = reported(unknown, calls, sum(call.macs for call in calls), [])
        assert ran.executed_int8_mac_share is None, "not a share of 0, which would be a claim"
    raw = json.dumps({"Layers": told}).replace("\\u001e", "\x1e")
    assert "\x1e" in json.dumps({"Layers": [layer("x", "conv", "", ["a", "b"])]}).replace("\\u001e", "\x1e")
    assert len(kernels(raw)) == 3


def read_kernels(layers: object) -> list[ReportedKernel]:
    return [ReportedKernel.model_validate(one) for one in kernels(json.dumps({"Layers": layers}))]


class Context:
    """What TensorRT's execution context answers; it notes what it was told."""

    def __init__(self, refuses: str = "") -> None:
        self.refuses, self.said = refuses, {}

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self.profile = profile
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        return self.refuses != "shape"

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.said[name] = address
        return address % ALIGNED == 0 and self.refuses != name

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (self.shape[0], 10)


class Bindings(SimpleNamespace):
    """The part of TensorRT's bindings that an engine is called by; their types by name, as the real ones have them."""

    Logger = type("Logger", (), {"ERROR": 1, "__init__": lambda self, level: None})
    TensorIOMode = SimpleNamespace(INPUT=0, OUTPUT=1)
    ExecutionContextAllocationStrategy = SimpleNamespace(ON_PROFILE_CHANGE=1)
    num_io_tensors, num_optimization_profiles, refuses = 2, 2, ""

    def Runtime(self, logger: object) -> object:
        return SimpleNamespace(deserialize_cuda_engine=lambda content: self if content == ENGINE else None)

    def get_tensor_name(self, number: int) -> str:
        return ("logits", "images")[number]

    def get_tensor_mode(self, name: str) -> int:
        return int(name == "logits")

    def get_tensor_dtype(self, name: str) -> object:
        return SimpleNamespace(name="FLOAT" if name == "images" else "HALF")

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return [(size, 3, 32, 32) for size in tensorrt.tuned_ranges([1, 8])[profile]]

    def create_execution_context(self, strategy: int) -> Context:
        return Context(self.refuses)


class OnThisMachine(Engine):
    """An engine whose tensors are a CPU's, and whose context computes nothing."""

    def _stream(self) -> object:
        return SimpleNamespace(cuda_stream=0, synchronize=lambda: None)

    def _is_there(self, value: torch.Tensor) -> bool:
        return True

    def _execute(self, context: object) -> None:
        pass


def test_an_engine_is_called_as_it_asks(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A context for each size, with its profile; addresses that TensorRT takes; outputs of the engine's type."""
    monkeypatch.setitem(sys.modules, "tensorrt", Bindings())
    monkeypatch.setattr(alone_tensorrt, "ALIGNED", ALIGNED)
    engine = OnThisMachine(str(package))
    odd = torch.zeros(1 + 8 * 3 * 32 * 32)[1:].view(8, 3, 32, 32)  # not where TensorRT could read it
    assert odd.data_ptr() % ALIGNED
    assert engine(odd).shape == (8, 10)
    assert engine(odd[:1].clone()).dtype == torch.float16
    engine(odd[:5])
    assert {size: one.profile for size, one in engine.contexts.items()} == {8: 1, 1: 0, 5: 1}
    assert engine.contexts[8].shape == (8, 3, 32, 32), "another size does not change it"
    with pytest.raises(RuntimeError, match="takes no batch of 9"):
        engine(torch.zeros(9, 3, 32, 32))
    with pytest.raises(RuntimeError, match=r"float64, and the engine takes torch\.float32"):
        engine(odd.double())
    monkeypatch.setattr(OnThisMachine, "_is_there", Engine._is_there)
    with pytest.raises(RuntimeError, match="is on cpu, and the engine on a GPU"):
        engine(odd)


@pytest.mark.parametrize(("what", "said"), [("shape", "take images"), ("images", "read"), ("logits", "write")])
def test_what_tensorrt_refuses_is_not_passed_over(
    what: str, said: str, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", Bindings(refuses=what))
    monkeypatch.setattr(alone_tensorrt, "ALIGNED", ALIGNED)
    with pytest.raises(RuntimeError, match=f"cannot {said}"):
        OnThisMachine(str(package))(torch.zeros(1, 3, 32, 32))


def test_each_measured_size_has_kernels_of_its_own() -> None:
    assert tensorrt.tuned_ranges([1]) == [(1, 1, 1)]
    assert tensorrt.tuned_ranges([32, 1, 8, 128]) == [(1, 1, 1), (2, 8, 8), (9, 32, 32), (33, 128, 128)]


def test_its_fp32_is_measured_once() -> None:
    """Engines are built without TF32."""
    own = ContenderSettings("fp32-tensorrt", "tensorrt", "cuda", "", (), 1, "", 0, None, fp32=True)
    assert [one.way for one in ways([own], Bench())] == ["tensorrt", "tensorrt+graph"]
    assert "inductor+tf32" in [one.way for one in ways([replace(own, runtime="inductor")], Bench())]


def test_without_the_library_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # as if it were not installed
    with pytest.raises(UserError, match="tensorrt cannot be used") as refused:
        tensorrt.prepare()
    assert "pip install 'raq[tensorrt]'" in refused.value.hint
