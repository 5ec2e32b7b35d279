"""ONNX files for OpenVINO and ONNX Runtime: of the same program, and what each of the two really computes in int8."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from networks import EXAMPLE, quantized, small
from onnx import helper, numpy_helper
from torch import nn

import raq
from raq.artifact import check, onnxruntime, openvino, runtimes, scales, sizes
from raq.artifact.account import reported, what_ran
from raq.artifact.audit import audit
from raq.artifact.executed import KnownLayer
from raq.artifact.isolated import IsolatedProcess, ReportedKernel
from raq.artifact.metadata import METADATA_KEY, Metadata
from raq.artifact.wrapper_code import KernelCall
from raq.bench.artifacts import bench_artifacts, bench_settings
from raq.errors import StageError, UserError
from raq.experiment.inputs import image_input
from raq.experiment.ptq import Calibration
from raq.model.parity import sqnr_db
from raq.quantize import convert, ptq
from raq.quantize.export import export_network

METADATA = {"candidate": "ptq", "kind": "ptq", "input": [3, 32, 32], "macs": 16 * 1024 * 27 + 32 * 256 * 144 + 320}
NAMES = ("openvino", "onnxruntime")
LOWER = {"openvino": openvino.lower, "onnxruntime": onnxruntime.lower}
LOAD = {"openvino": openvino.load, "onnxruntime": onnxruntime.load}


class Residual(nn.Module):
    """Convolutions whose output is added to another: the first sum is quantized for what reads it, the last is not."""

    def __init__(self, *, last: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 16, 3, padding=1)
        self.third = nn.Conv2d(16, 16, 3, padding=1) if not last else nn.Identity()
        self.fc = nn.Linear(16, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        start = torch.relu(self.first(images))
        total = self.third(torch.relu(self.second(start) + start))
        return self.fc(torch.relu(total).mean((2, 3)))


@pytest.fixture(scope="module")
def program(digits):
    torch.manual_seed(0)
    return quantized(small(), digits)


@pytest.fixture(scope="module")
def files(program, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("onnx")
    paths = {name: folder / f"{name}.onnx" for name in NAMES}
    for name, path in paths.items():
        LOWER[name](program, path, METADATA)
    return paths


def ran(path: Path, program):
    code = scales.name_scales(runtimes.read(path), program)
    layers = [KnownLayer(layer.name, layer.macs) for layer in audit(program, code).layers]
    with IsolatedProcess(path, threads=1) as process:
        assert process.loaded.foreign == []
        return what_ran(process, (image_input((3, 32, 32)),), [c.shape for c in code.constants], None, layers)


@pytest.mark.parametrize("name", NAMES)
def test_the_file_is_the_program(name: str, program, files: dict[str, Path]) -> None:
    """Every layer between dequantize and quantize, its scales those of the program; the weights are stored once."""
    path = files[name]
    assert runtimes.runtime_of_file(path).name == name
    assert runtimes.read_metadata(path).values[METADATA_KEY]["runtime"] == name
    code = scales.name_scales(runtimes.read(path), program)
    found = audit(program, code)
    assert found.int8_mac_share == 1.0
    assert found.problem == ""
    assert all(call.weight_scale in program.state_dict for call in code.calls)
    assert sum(call.macs or 0 for call in code.calls) == METADATA["macs"] == found.total_macs
    counted, weights = sizes.ledger(code), 3 * 16 * 9 + 16 * 32 * 9 + 320
    assert counted.duplicates == []
    assert weights <= counted.by_dtype["int8"] < 1.2 * weights, "and the zero points of channels"
    assert counted.by_dtype["float32"] < weights
    assert str(Path(torch.__file__).parent).encode() not in path.read_bytes(), "no path of this machine"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("images", [1, 3])
def test_it_computes_what_was_converted(name: str, images: int, program, files: dict[str, Path]) -> None:
    given = torch.randn(images, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with IsolatedProcess(files[name], threads=1) as process:
        answer = process(given)
    assert torch.equal(answer, LOAD[name](files[name], 1)(given)), "the same in this process"
    db = sqnr_db(program.module()(given).detach().numpy(), answer.numpy())
    assert db is None or db > 25


def test_openvino_says_that_it_ran_in_int8(program, files: dict[str, Path]) -> None:
    found = ran(files["openvino"], program)
    assert found.executed_int8_mac_share == 1.0
    assert [layer.int8 for layer in found.executed_layers] == [True, True, True]
    assert all(layer.kernel for layer in found.executed_layers)


def test_onnx_runtime_says_what_it_ran_in_float(program, files: dict[str, Path], digits, tmp_path: Path) -> None:
    """The file means all of it to be int8, and what ONNX Runtime makes of it is another matter.

    It computes in int8 what stands between dequantize and quantize; the last sum has no quantize after it.
    """
    found = ran(files["onnxruntime"], program)
    assert [layer.int8 for layer in found.executed_layers[:2]] == [True, True]
    assert found.executed_int8_mac_share >= 1 - 320 / METADATA["macs"]
    torch.manual_seed(0)
    residual = quantized(Residual(last=True).eval(), digits)
    path = tmp_path / "residual.onnx"
    onnxruntime.lower(residual, path, {**METADATA, "macs": None})
    code = scales.name_scales(runtimes.read(path), residual)
    assert audit(residual, code).int8_mac_share == 1.0, "by the file"
    found = ran(path, residual)
    first, second, _ = found.executed_layers
    assert first.int8
    assert not second.int8
    assert found.executed_int8_mac_share < 0.2, "the second convolution does most of the work"
    openvino.lower(residual, tmp_path / "other.onnx", {**METADATA, "macs": None})
    assert ran(tmp_path / "other.onnx", residual).executed_int8_mac_share == 1.0


def test_what_is_added_to_a_shortcut_is_int8_in_onnx_runtime_too(
    digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sum is quantized, so a range of what is added is known: that convolution runs in int8, as near as can be."""
    torch.manual_seed(0)
    residual = quantized(Residual(last=False).eval(), digits)
    path, plain = tmp_path / "a.onnx", tmp_path / "plain.onnx"
    onnxruntime.lower(residual, path, {**METADATA, "macs": None})
    monkeypatch.setattr(onnxruntime, "quantize_addends", lambda model: 0)
    onnxruntime.lower(residual, plain, {**METADATA, "macs": None})
    assert [layer.int8 for layer in ran(plain, residual).executed_layers[:2]] == [True, False]
    assert [layer.int8 for layer in ran(path, residual).executed_layers[:2]] == [True, True]
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = residual.module()(images).detach().numpy()
    db = sqnr_db(expected, onnxruntime.load(path, 1)(images).numpy())
    assert db is None or db > 25


@pytest.mark.parametrize("name", NAMES)
def test_fp32_offered_as_int8(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    LOWER[name](export_network(small(), EXAMPLE), path, METADATA)
    assert [call.integer for call in runtimes.read(path).calls] == [False, False, False]
    found = check.check(path, tmp_path / "results", run=True, require=0.95)
    assert found["int8_mac_share"] == found["executed_int8_mac_share"] == 0
    assert "not quantized: offered as ptq" in found["problems"][0]


@pytest.mark.parametrize("name", NAMES)
def test_check_finds_nothing_wrong(name: str, files: dict[str, Path], tmp_path: Path) -> None:
    found = check.check(files[name], tmp_path / "results", run=True, require=0.95)
    assert found["problems"] == []
    assert found["ran"]["runtime"] == name
    assert found["executed_int8_mac_share"] > 0.95


def test_a_call_counts_as_int8_only_if_an_int8_kernel_computes_it() -> None:
    calls = [KernelCall("Conv int8", True, None, None, None, None, None, 100, (node,)) for node in ("a", "b", "c")]
    kernels = [
        ReportedKernel(nodes=["a", "add"], kernel="Convolution brgconv u8", int8=True),
        ReportedKernel(nodes=["b"], kernel="Convolution jit f32", int8=False),
    ]
    layers = [KnownLayer(name, 100) for name in ("first", "second", "third")]
    found = reported(kernels, calls, 400, layers)
    assert found.executed_int8_mac_share == 0.25, "of what the network does"
    assert [(layer.kernel, layer.int8) for layer in found.executed_layers] == [
        ("Convolution brgconv u8", True), ("Convolution jit f32", False), (None, False),
    ]  # fmt: skip
    assert reported(kernels, calls, None, []).executed_int8_mac_share == 1 / 3
    unknown = KernelCall("If", False, None, None, None, None, None, None, ("d",))
    assert reported(kernels, [*calls, unknown], None, []).executed_int8_mac_share is None
    assert reported(kernels, [*calls, unknown], 400, []).executed_int8_mac_share == 0.25
    twice = [*kernels, ReportedKernel(nodes=["a"], kernel="Eltwise f32", int8=False)]
    assert reported(twice, calls, 400, []).executed_int8_mac_share == 0, "of two answers the worse one"


@pytest.mark.parametrize("content", [b"\x08\x0a", b"\x08\x0a\x12\xff\xff", b"\x08\x0a" + bytes(100), b""])
def test_damaged_files(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(content)
    with pytest.raises(StageError):
        runtimes.read(path)
    assert check.check(path, tmp_path / "results", run=True, require=0.95)["problems"]


@pytest.mark.parametrize("cut", [3, 2000, 4000])
def test_files_that_were_cut_off(cut: int, files: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(files["openvino"].read_bytes()[:-cut])
    assert check.check(path, tmp_path / "results", run=True, require=0.95)["problems"]


def test_a_strangers_file_is_for_onnx_runtime_and_its_unknown_operators_count(
    files: dict[str, Path], tmp_path: Path
) -> None:
    model = onnx.load(str(files["openvino"]))
    del model.metadata_props[:]
    node = model.graph.node.add()
    node.op_type, node.domain, node.name = "FastMatMul", "com.stranger", "x"
    path = tmp_path / "a.onnx"
    path.write_bytes(model.SerializeToString())
    assert runtimes.runtime_of_file(path).name == "onnxruntime"
    code = runtimes.read(path)
    assert code.calls[-1].macs is None
    assert check.share_of_code(code, Metadata(code.metadata)) is None
    for text in ("[1]", "{", json.dumps({"raq": 1})[:-1]):
        entry = model.metadata_props.add()
        entry.key, entry.value = METADATA_KEY, text
        path.write_bytes(model.SerializeToString())
        with pytest.raises(StageError):
            runtimes.read(path)
        del model.metadata_props[:]


def test_they_are_measured_side_by_side(files: dict[str, Path]) -> None:
    protocol = bench_settings(batch_sizes=[1], budget_s=0.5)
    found = bench_artifacts(list(files.values()), protocol)
    assert [row["runtime"] for row in found["rows"]] == list(NAMES)
    assert all(row["p50_ms"] > 0 for row in found["rows"])


@pytest.mark.parametrize("name", NAMES)
def test_an_artifact_as_a_function(name: str, program, files: dict[str, Path]) -> None:
    network = raq.load_artifact(files[name], threads=1)
    images = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)
    logits = network(images)
    assert logits.dtype == np.float32
    assert logits.shape == (2, 10)
    assert np.array_equal(logits, network(torch.from_numpy(images)))
    assert np.array_equal(logits, LOAD[name](files[name], 1)(torch.from_numpy(images)).numpy())
    for wrong in (images[0], images[:0], images[:, :, :16]):
        with pytest.raises(UserError, match=r"give at least one image of \[3, 32, 32\]|images of shape"):
            network(wrong)
    with pytest.raises(UserError, match="there is no such file"):
        raq.load_artifact("none.onnx")
    with pytest.raises(UserError, match="threads is 0"):
        raq.load_artifact(files[name], threads=0)


@pytest.mark.parametrize("name", NAMES)
def test_the_lines_to_use(name: str, files: dict[str, Path]) -> None:
    """What is printed beside the file that is shipped loads it in a process without raq."""
    line = runtimes.RUNTIMES[name].use.format(path=str(files[name]), threads=1)
    done = subprocess.run([sys.executable, "-c", f"import {name}; {line}; print(type(network).__name__)"],
                          check=True, capture_output=True, text=True)  # fmt: skip
    assert done.stdout.split()[-1] in ("CompiledModel", "InferenceSession")


def graph_of(nodes: list, batch: object, sizes: list, constants: dict, outputs: dict, kind: int = 1) -> onnx.ModelProto:
    """A model of these nodes that reads float images of [batch, *sizes]. kind: of the outputs' numbers, 1: float."""
    values = [helper.make_tensor_value_info(name, kind, shape) for name, shape in outputs.items()]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", 1, [batch, *sizes])], values[-1:],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()], value_info=values[:-1],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def calls_of(model: onnx.ModelProto, tmp_path: Path) -> list[KernelCall]:
    path = tmp_path / "made.onnx"
    path.write_bytes(model.SerializeToString())
    return runtimes.read(path).calls


def test_a_strangers_integer_operators(tmp_path: Path) -> None:
    """QLinearConv has its weight in the fourth place, and its scale in the fifth."""
    scale = np.float32(0.1)
    constants = {
        "s": scale,
        "z": np.uint8(0),
        "w": np.ones((8, 3, 3, 3), np.int8),
        "ws": np.full(8, scale),
        "wz": np.int8(0),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("QLinearConv", ["q", "s", "z", "w", "ws", "wz", "s", "z"], ["y"], "conv"),
    ]
    for known in ({"y": ["n", 8, 14, 14]}, {"y": None}):
        (call,) = calls_of(graph_of(nodes, "n", [3, 16, 16], constants, known, 2), tmp_path)
        assert call.integer
        assert call.weight == "w"
        assert call.macs == 8 * 14 * 14 * 27, "shapes that are missing are inferred"
        assert call.weight_scale == scales.bytes_digest(np.full(8, scale).tobytes())


@pytest.mark.parametrize(("zero", "integer"), [(np.uint8(0), True), (np.uint16(0), False)])
def test_both_operands_must_have_8_bits(zero: np.generic, integer: bool, tmp_path: Path) -> None:
    constants = {"s": np.float32(0.1), "z": zero, "w": np.ones((8, 3, 1, 1), np.int8), "wz": np.int8(0)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "s", "wz"], ["v"]),
        helper.make_node("Conv", ["d", "v"], ["y"], "conv"),
    ]
    (call,) = calls_of(graph_of(nodes, "n", [3, 4, 4], constants, {"y": ["n", 8, 4, 4]}), tmp_path)
    assert call.integer is integer


@pytest.mark.parametrize(
    ("batch", "rows", "macs"),
    [("n", "n", 64), ("n", "7*n", 448), ("n", "n*7", 448), ("n", "m", None), (2, 14, 448), (5, 3, None)],
)
def test_tokens_may_stand_beside_the_batch(batch: object, rows: object, macs: int | None, tmp_path: Path) -> None:
    """Attention multiplies [images x tokens, features]: each image has as many rows as it has tokens."""
    nodes = [helper.make_node("Gemm", ["t", "w"], ["y"], "gemm", transB=1)]
    constants = {"w": np.ones((16, 4), np.float32)}
    model = graph_of(nodes, batch, [4], constants, {"t": [rows, 4], "y": [rows, 16]})
    (call,) = calls_of(model, tmp_path)
    assert call.macs == macs


def test_what_hides_in_other_domains_and_inner_graphs_is_seen(tmp_path: Path) -> None:
    constants = {"w": np.ones((8, 3, 1, 1), np.float32), "c": np.array(True)}
    conv = helper.make_node("Conv", ["x", "w"], ["y"], "conv", domain="ai.onnx")
    (call,) = calls_of(graph_of([conv], "n", [3, 4, 4], constants, {"y": ["n", 8, 4, 4]}), tmp_path)
    assert (call.integer, call.macs) == (False, 8 * 16 * 3)
    inner = helper.make_graph([helper.make_node("Conv", ["x", "w"], ["z"])], "g", [], [
        helper.make_tensor_value_info("z", 1, ["n", 8, 4, 4])])  # fmt: skip
    branch = helper.make_node("If", ["c"], ["y"], "if", then_branch=inner, else_branch=inner)
    (call,) = calls_of(graph_of([branch], "n", [3, 4, 4], constants, {"y": ["n", 8, 4, 4]}), tmp_path)
    assert (call.kernel, call.integer, call.macs) == ("If", False, None)


def test_weights_in_other_files_are_refused(files: dict[str, Path], tmp_path: Path) -> None:
    model = onnx.load(str(files["openvino"]))
    path = tmp_path / "a.onnx"
    onnx.save(model, str(path), save_as_external_data=True, size_threshold=0)
    with pytest.raises(StageError, match="of its tensors are in other files"):
        runtimes.read(path)
    (problem,) = check.check(path, tmp_path / "results", run=False, require=0.95)["problems"]
    assert "are in other files: save it as one" in problem


@pytest.mark.parametrize("name", NAMES)
def test_7_bits_are_refused(name: str, digits, tmp_path: Path) -> None:
    """QuantizeLinear knows the type alone: a file would let values through that the program cuts off."""
    prepared = ptq.prepare(small(), EXAMPLE, "x86", Calibration(observer="minmax"), reduce_range=True)
    ptq.calibrate(prepared, digits, Calibration(size=32), seed=0)
    with pytest.raises(StageError, match=r"go from 0 to 127 \(reduce_range\), which ONNX cannot say"):
        LOWER[name](convert.convert(prepared, EXAMPLE), tmp_path / "a.onnx", METADATA)


def test_a_long_chain_is_read_in_time(tmp_path: Path) -> None:
    count = 3000
    nodes = [helper.make_node("Identity", ["x" if n == 0 else f"i{n - 1}"], [f"i{n}"]) for n in range(count)]
    nodes += [helper.make_node("MatMul", [f"i{count - 1}", "w"], [f"m{n}"]) for n in range(count)]
    model = graph_of(nodes, "n", [4], {"w": np.ones((4, 4), np.float32)}, {f"m{n}": ["n", 4] for n in range(count)})
    assert len(calls_of(model, tmp_path)) == count
