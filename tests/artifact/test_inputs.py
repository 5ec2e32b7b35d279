"""Networks of other inputs than images: every runtime computes what the program does, whatever the batch and length."""

from pathlib import Path
from typing import Any

import pytest
import torch
from networks import SATURATES
from torch import Tensor, nn

import raq
from raq.artifact import inductor, onnxruntime, openvino
from raq.artifact.inspection import default_inputs, inspect_model, read_input
from raq.artifact.isolated import IsolatedProcess
from raq.errors import StageError, UserError
from raq.experiment.inputs import Axis, InputSpec, image_input, names_of, read_inputs
from raq.experiment.ptq import Calibration
from raq.model.adapter import adapt, outputs_of
from raq.model.inputs import Example, example_of, random_inputs
from raq.model.parity import sqnr_db
from raq.quantize import convert, ptq
from raq.quantize.arithmetic import network_macs
from raq.quantize.export import export_for_lowering, export_network, layers
from raq.quantize.quantizers import quantizer_errors

AXES = (Axis(0, "length", 2, 12),)
INPUTS = (
    InputSpec("tokens", (6,), "int64", 0.0, 30.0, AXES, True),
    InputSpec("mask", (6,), "float32", 0.0, 1.0, AXES, True),
)


class Reader(nn.Module):
    """Words, weighted by a mask; the mask comes first, so that names count and not the order."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(31, 32)
        self.first, self.relu, self.last = nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 4)

    def forward(self, mask: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        hidden = self.relu(self.first(self.words(tokens)))
        return {"hidden": hidden, "logits": self.last((hidden * mask[..., None]).sum(1))}


@pytest.fixture(scope="module")
def reader() -> nn.Module:
    torch.manual_seed(0)
    return adapt(Reader().eval(), names_of(INPUTS), "logits")


@pytest.fixture(scope="module")
def programs(reader) -> dict[bool, Any]:
    """With 8 bits for activations, which ONNX needs, and with those that raq would give them on this CPU."""
    found = {}
    for reduced in {False, SATURATES}:
        prepared = ptq.prepare(reader, example_of(INPUTS), "x86", Calibration(observer="minmax"), reduce_range=reduced)
        prepared(*random_inputs(INPUTS, 64))
        found[reduced] = convert.convert(prepared, example_of(INPUTS))
    return found


def of_length(count: int, length: int) -> tuple[Tensor, ...]:
    return tuple(value[:, :1].repeat(1, length) for value in random_inputs(INPUTS, count))


@pytest.mark.parametrize("runtime", [inductor, onnxruntime, openvino], ids=lambda module: module.__name__[13:])
def test_every_batch_and_length_is_computed_as_the_program_does(runtime: Any, programs, tmp_path: Path) -> None:
    program = programs[SATURATES and runtime is inductor]
    least_db = 10 if SATURATES and runtime is not inductor else 40
    path = tmp_path / ("a.pt2" if runtime is inductor else "a.onnx")
    runtime.lower(program, path, {"candidate": "ptq", "inputs": [one.plain() for one in INPUTS]})
    module = program.module()
    with IsolatedProcess(path, "cpu", 1) as process:
        for count, length in ((1, 6), (3, 2), (5, 12)):
            given = of_length(count, length)
            expected, found = module(*given), process(*given)
            distance = sqnr_db(expected.numpy(), found.numpy())
            assert distance is None or distance > least_db, (count, length)
    network = raq.load_artifact(path, threads=1)
    tokens, mask = of_length(2, 5)
    assert network({"mask": mask, "tokens": tokens}) == pytest.approx(network(tokens.numpy(), mask.numpy()))
    for given, message in (
        (({"mask": mask},), "there is no input 'tokens'"), ((tokens,), "1 inputs"),
        (of_length(2, 13), "tokens of shape"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message) as caught:
            network(*given)
        assert "tokens int64 [n, 6], mask float32 [n, 6]" in caught.value.hint


def test_arithmetic_is_of_one_sample_at_the_length_that_was_seen(reader) -> None:
    """6 words of 32 x 64, and one sum of 64 x 4, by the operators that run and by the graph's shapes."""
    assert network_macs(reader, example_of(INPUTS)).total == 6 * 32 * 64 + 64 * 4
    graph = export_network(reader, example_of(INPUTS)).module().graph
    assert [(layer.name, layer.macs) for _, layer in layers(graph)] == [("first", 6 * 32 * 64), ("last", 64 * 4)]


def test_a_network_that_is_adapted_keeps_the_names_of_its_tensors(reader) -> None:
    assert set(reader.state_dict()) == set(Reader().state_dict())
    assert type(reader).__name__ == "Reader"


def test_outputs_by_name() -> None:
    given = (torch.zeros(1), torch.ones(1))
    assert list(outputs_of(given)) == [0, 1]
    assert outputs_of(torch.zeros(2)) == {}
    one = adapt(nn.LSTM(4, 4, batch_first=True), None, 0)
    assert one(torch.zeros(2, 3, 4)).shape == (2, 3, 4)


def test_convolutions_of_one_channel_compute_what_their_graph_does(tmp_path: Path) -> None:
    """torch's own int8 kernels read them in another order, and within a network its float ones too (results/log.md)."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 1, 3), nn.ReLU(), nn.Conv2d(1, 16, 3), nn.ReLU(),
        nn.Conv2d(16, 8, 1),
    ).eval()  # fmt: skip
    images = torch.randn(3, 1, 16, 16)
    prepared = ptq.prepare(network, images[:2], "x86", Calibration(observer="minmax"), reduce_range=SATURATES)
    prepared(images)
    programs = {"int8": convert.convert(prepared, images[:2]), "fp32": export_for_lowering(network, images[:2])}
    for name, program in programs.items():
        inductor.lower(program, tmp_path / f"{name}.pt2", {})
        found = inductor.load(tmp_path / f"{name}.pt2")(images)
        distance = sqnr_db(program.module()(images).detach().numpy(), found.detach().numpy())
        assert distance is None or distance > 60, name


class SumFromZero(nn.Module):
    """A sum that begins with the number 0, as reparameterised networks have it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, images: Tensor) -> Tensor:
        return 0 + self.conv(images)


def test_an_addition_to_a_number_is_no_pattern() -> None:
    prepared = ptq.prepare(SumFromZero().eval(), torch.zeros(2, 3, 8, 8), "x86", Calibration(), reduce_range=False)
    quantized = [node for node in prepared.graph.nodes if "activation_post_process" in str(node.target)]
    assert len(quantized) == 2  # of the convolution: what it reads, and its weight


def test_what_a_quantizer_raises_names_the_layer() -> None:
    graph = export_network(SumFromZero().eval(), torch.zeros(2, 3, 8, 8)).module().graph

    def annotate(conv_node: Any) -> None:
        assert conv_node is None

    with (
        pytest.raises(StageError, match=r"the quantizer of x86 fails at conv .*: AssertionError"),
        quantizer_errors("x86"),
    ):
        annotate(next(node for node in graph.nodes if "conv2d" in str(node.target)))


def test_descriptions_of_inputs() -> None:
    assert read_input("3,64,64") == image_input((3, 64, 64))
    assert read_input("tokens=128:int64:30000") == InputSpec("tokens", (128,), "int64", 0.0, 30000.0, by_name=True)
    for wrong in ("3,x", "a=4:int65", "tokens=4:int64:many"):
        with pytest.raises(UserError, match="--input"):
            read_input(wrong)
    assert [one.name for one in default_inputs(["4", "5"])] == ["input0", "input1"]
    for given, message in ((["a=4", "5"], "some inputs have names"), (["a=4", "a=5"], "the same name")):
        with pytest.raises(UserError, match=message):
            default_inputs(given)
    assert read_inputs([one.plain() for one in INPUTS]) == INPUTS
    huge = [{"name": "x", "shape": [10**7, 10**5]}], [{"name": "x", "shape": [4], "low": 0.0, "high": float("inf")}]
    for broken in (
        *huge,
        [],
        "text",
        [{"name": "x", "shape": [0]}],
        [{"name": "x", "shape": [4], "dtype": "complex"}],
        {},
    ):
        assert read_inputs(broken) is None
    assert len(Example((torch.zeros(3, 2),)).first(2)) == 2


def test_inspect_says_what_would_become_of_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of a network's layers in int8; of one that branches on its data, the line."""
    monkeypatch.setattr("raq.artifact.inspection.build_network", lambda *asked: SumFromZero())
    found = inspect_model("mine:net", (image_input((3, 8, 8)),), None)
    assert (found.exports, found.int8_mac_share, found.qat, found.reason) == (True, 1.0, "ok", None)
    assert (found.macs, found.output_shape) == (6 * 6 * 8 * 27, [8, 6, 6])

    compiled = inspect_model("mine:net", (image_input((3, 8, 8)),), None, compiles=True).compiled
    assert compiled is not None
    assert (compiled["executed_int8_mac_share"], compiled["reorders_per_call"]) == (1.0, {"1": 0, "8": 0})

    class Branching(SumFromZero):
        def forward(self, images: Tensor) -> Tensor:
            return self.conv(images) if images.sum() > 0 else self.conv(-images)

    monkeypatch.setattr("raq.artifact.inspection.build_network", lambda *asked: Branching())
    found = inspect_model("mine:net", (image_input((3, 8, 8)),), None)
    assert (found.exports, found.static_batch) == (False, False)
    assert found.reason is not None
    assert "test_inputs.py, line" in found.reason
