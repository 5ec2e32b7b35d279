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
from raq.model.parity import sqnr_db
from raq.quantize.export import export_network

METADATA = {"candidate": "ptq", "kind": "ptq", "input": [3, 32, 32], "macs": 16 * 1024 * 27 + 32 * 256 * 144 + 320}
NAMES = ("openvino", "onnxruntime")
LOWER = {"openvino": openvino.lower, "onnxruntime": onnxruntime.lower}
LOAD = {"openvino": openvino.load, "onnxruntime": onnxruntime.load}


class Residual(nn.Module):
    """A convolution whose output is added to another: no quantization stands between the two."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 16, 3, padding=1)
        self.fc = nn.Linear(16, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        start = torch.relu(self.first(images))
        return self.fc(torch.relu(self.second(start) + start).mean((2, 3)))


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
        return what_ran(process, (3, 32, 32), [c.shape for c in code.constants], None, layers)


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
    assert sizes.ledger(code).by_dtype["int8"] >= 3 * 16 * 9 + 16 * 32 * 9 + 320
    assert sizes.float_copies(program) == []
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

    It computes in int8 what stands between dequantize and quantize; what an addition follows has no quantize after it.
    """
    convolutions = METADATA["macs"] - 320
    found = ran(files["onnxruntime"], program)
    assert [layer.int8 for layer in found.executed_layers[:2]] == [True, True]
    assert found.executed_int8_mac_share >= convolutions / METADATA["macs"]
    torch.manual_seed(0)
    residual = quantized(Residual().eval(), digits)
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
    calls = [KernelCall("Conv int8", True, None, None, None, None, None, 100, node) for node in ("a", "b", "c")]
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
    unknown = KernelCall("If", False, None, None, None, None, None, None, "d")
    assert reported(kernels, [*calls, unknown], 400, []).executed_int8_mac_share is None


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
