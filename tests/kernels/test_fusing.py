"""Networks quantized for GPUs: what becomes an int8 operator, and that the graph with them computes the same."""

from collections import Counter

import pytest
import torch
from networks import EXAMPLE
from torch import nn

pytest.importorskip("triton")

from raq.artifact.on_gpu import audit_on_gpu
from raq.experiment.ptq import Calibration
from raq.kernels.fusing import matches, with_int8_operators
from raq.model.parity import sqnr_db
from raq.quantize import convert, ptq, qat
from raq.quantize.learned_scales import put_learned_scales, put_observers


class Blocks(nn.Module):
    """A shortcut with a convolution, one without, ReLU6, a pooling, a depthwise layer, and a gate in float."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.pool = nn.MaxPool2d(2)
        self.one, self.two = nn.Conv2d(16, 24, 3, 2, 1), nn.Conv2d(16, 24, 1, 2)
        self.deep, self.gate = nn.Conv2d(24, 24, 3, padding=1, groups=24), nn.Conv2d(24, 24, 1)
        self.last = nn.Linear(24, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        shared = self.pool(self.first(images))
        joined = torch.relu(self.one(shared) + self.two(shared))
        deep = nn.functional.relu6(self.deep(joined)) + joined
        gated = deep * torch.sigmoid(self.gate(deep))
        return self.last(gated.mean((2, 3)))


def prepared(network: nn.Module):
    graph = ptq.prepare(network.eval(), EXAMPLE, "cuda", Calibration(observer="minmax"), reduce_range=False)
    with torch.no_grad():
        graph(torch.randn(64, 3, 32, 32))
    return graph


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory):
    """As the stage that lowers reads it."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("program") / "program.pt2"
    convert.save_program(convert.convert(prepared(Blocks()), EXAMPLE), path)
    return convert.load_program(path)


def operators(program) -> Counter[str]:
    return Counter(str(n.target).rpartition(".")[0] for n in program.graph.nodes if n.op == "call_function")


def test_activations_are_symmetric(program) -> None:
    rounded = [n for n in program.graph.nodes if "quantize_per_tensor" in str(n.target)]
    assert {(n.args[2], n.args[3], n.args[4], n.args[5]) for n in rounded} == {(0, -127, 127, torch.int8)}


def test_every_layer_becomes_an_operator_and_computes_the_same(program) -> None:
    fused = with_int8_operators(program)
    found = operators(fused)
    assert (found["raq.int8_conv2d"], found["raq.int8_linear"]) == (5, 1)
    assert not [name for name in found if name in ("aten.conv2d", "aten.linear", "aten.relu")]
    assert "quantized_decomposed.dequantize_per_channel" not in found
    first = next(node for node in fused.graph.nodes if str(node.target) == "raq.int8_conv2d.default")
    assert first.args[0].meta["val"].shape[1] == 4, "three channels are four, a word"
    added = [match for match in matches(program.graph) if match.addend is not None]
    assert len(added) == 1, "the second sum has ReLU6 before it: no kernel adds it"
    for count in (1, 7):  # for any batch
        images = torch.randn(count, 3, 32, 32)
        wanted, given = (each.module()(images).detach().numpy() for each in (program, fused))
        assert sqnr_db(wanted, given) > 30, "only single roundings may differ: float sums are not exact"
    assert all(match.ceiling in (None, 6.0) for match in matches(program.graph))
    assert [match.ceiling for match in matches(program.graph)].count(6.0) == 1


def test_the_audit_counts_what_has_an_operator(program) -> None:
    found = audit_on_gpu(program)
    assert found is not None
    assert [layer.int8 for layer in found.layers] == [True] * 6
    assert found.int8_mac_share == 1.0
    assert found.kernels == {"raq::int8_conv2d": 5, "raq::int8_linear": 1}


def test_what_other_backends_quantize_stays_float() -> None:
    graph = ptq.prepare(Blocks().eval(), EXAMPLE, "x86", Calibration(observer="minmax"), reduce_range=False)
    with torch.no_grad():
        graph(torch.randn(8, 3, 32, 32))
    other = convert.convert(graph, EXAMPLE)
    assert audit_on_gpu(other) is None
    assert with_int8_operators(other) is other


def test_a_layer_left_in_float_is_named() -> None:
    torch.manual_seed(0)
    graph = ptq.prepare(
        Blocks().eval(), EXAMPLE, "cuda", Calibration(observer="minmax"), floats=["two"], reduce_range=False
    )
    with torch.no_grad():
        graph(torch.randn(8, 3, 32, 32))
    found = audit_on_gpu(convert.convert(graph, EXAMPLE))
    assert found is not None
    assert found.float_layers() == ["two"]
    assert found.int8_mac_share is not None
    assert 0.8 < found.int8_mac_share < 1


def test_training_keeps_what_kernels_can_compute(program) -> None:
    """From PTQ with scales that learn, and from FP32 with batch norms in the graph: all layers match afterwards."""
    torch.manual_seed(0)
    graph = prepared(Blocks())
    put_learned_scales(graph)
    put_observers(graph)
    assert len(matches(convert.convert(graph, EXAMPLE).graph)) == 6
    fake = qat.prepare_qat(Blocks(), EXAMPLE, "cuda", reduce_range=False)
    fake(torch.randn(8, 3, 32, 32))
    qat.set_graph_mode(fake, training=False, norms=False)
    assert len(matches(convert.convert(fake, EXAMPLE).graph)) == 6
