"""Dynamic quantization, and of weights alone: the graphs, what they compute, and what is lowered of them."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from raq.artifact import inductor
from raq.artifact.audit import audit, float_weight_share
from raq.artifact.check import _judge_weights
from raq.artifact.checked import CheckedLayer
from raq.artifact.generated_code import read_package
from raq.artifact.isolated import IsolatedProcess
from raq.errors import StageError
from raq.experiment.inputs import Axis
from raq.experiment.ptq import Calibration
from raq.model.inputs import Example
from raq.model.parity import sqnr_db
from raq.quantize.convert import tensor_bytes
from raq.quantize.dynamic import dynamic_program
from raq.quantize.ptq import prepare
from raq.quantize.rewriting import rounded
from raq.quantize.weight_only import weight_only_program

aten = torch.ops.aten


class Words(nn.Module):
    """Token ids [n, length] to logits [n, 12]: an embedding, attention, and linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 32)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.inner = nn.Linear(32, 64)
        self.few = nn.Linear(64, 4)
        self.last = nn.Linear(4, 12, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        rows = self.embedding(ids)
        mixed = rows + self.attention(rows, rows, rows, need_weights=False)[0]
        return torch.as_tensor(self.last(torch.relu(self.few(torch.relu(self.inner(mixed.mean(1)))))))


def words() -> tuple[nn.Module, Example]:
    torch.manual_seed(0)
    return Words().eval(), Example((torch.randint(0, 50, (2, 7)),), ((Axis(0, "length", 2, 64),),))


def targets(program: ExportedProgram) -> Counter[str]:
    return Counter(str(node.target) for node in program.graph.nodes if node.op == "call_function")


def dynamic(network: nn.Module, example: Any) -> ExportedProgram:
    return dynamic_program(network, example, reduce_range=False)


def test_dynamic_takes_the_range_of_each_batch() -> None:
    """Against the arithmetic written out: uint8 between the batch's least and largest, int8 weights by channel."""
    torch.manual_seed(0)
    network = nn.Linear(16, 8)
    program = dynamic(network, torch.zeros(2, 16))
    integers, scales = rounded(network.weight.detach())
    for given in (torch.randn(6, 16) * 3 + 1, torch.randn(1, 16) + 7, torch.zeros(3, 16)):
        low, high = min(float(given.min()), 0), max(float(given.max()), 0)
        scale = max((high - low) / 255, torch.finfo(torch.float32).eps)
        zero = round(-low / scale)
        rows = ((given / scale).round() + zero).clamp(0, 255)
        expected = ((rows - zero) @ integers.float().T) * scale * scales + network.bias
        with torch.no_grad():
            assert torch.allclose(program.module()(given), expected, atol=2e-2 * float(scales.max()) + 1e-4)


def test_dynamic_quantizes_every_linear_layer_and_nothing_else() -> None:
    network, example = words()
    program = dynamic(network, example)
    found = targets(program)
    assert found["aten.linear.default"] == 5
    assert found["quantized_decomposed.choose_qparams.tensor"] == 5
    assert found["quantized_decomposed.dequantize_per_channel.default"] == 5
    assert found["quantized_decomposed.quantize_per_tensor.default"] == 0, "no range is fixed"
    assert found["aten.embedding.default"] == 2, "rows, and their scales"
    assert float_weight_share(program) == pytest.approx(
        50 / (50 + sum(p.numel() for p in network.parameters() if p.ndim > 1))
    )
    with torch.no_grad():
        three, single = torch.randint(0, 50, (3, 11)), torch.randint(0, 50, (1, 2))
        quality = sqnr_db(network(three).numpy(), program.module()(three).numpy())
        assert quality is not None
        assert quality > 25
        assert program.module()(single).shape == (1, 12)


class Shared(nn.Module):
    """Three layers that read one input behind a dropout, as attention does; and one whose output is lost."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.pooler = (nn.Linear(8, 16) for _ in range(4))
        self.dropout = nn.Dropout(0.1)

    def forward(self, data: Tensor) -> Tensor:
        data = self.dropout(data)
        torch.tanh(self.pooler(data))
        return torch.as_tensor(self.query(data) * self.key(data) + self.value(data))


def test_layers_that_read_one_input_share_its_rounding() -> None:
    found = targets(dynamic(Shared().eval(), torch.randn(2, 8)))
    assert found["quantized_decomposed.choose_qparams.tensor"] == 1
    assert found["quantized_decomposed.quantize_per_tensor.tensor"] == 1
    assert found["quantized_decomposed.dequantize_per_tensor.tensor"] == 3
    assert found["aten.linear.default"] == 3, "what is computed and not given is left out"


def test_what_is_computed_and_not_given_is_left_out_of_static_quantization() -> None:
    prepared = prepare(Shared().eval(), torch.randn(2, 8), "x86", Calibration(), reduce_range=False)
    assert sum(node.target is aten.linear.default for node in prepared.graph.nodes) == 3


def test_dynamic_leaves_convolutions_in_float() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)).eval()
    found = targets(dynamic(network, torch.zeros(2, 3, 8, 8)))
    assert found["quantized_decomposed.choose_qparams.tensor"] == 1
    assert found["quantized_decomposed.dequantize_per_channel.default"] == 1
    with pytest.raises(StageError, match="the network has none"):
        dynamic(nn.Sequential(nn.Conv2d(3, 4, 3)), torch.zeros(2, 3, 8, 8))


def test_weights_alone_are_rounded_by_row() -> None:
    """Against the arithmetic written out; in float but for rounding to 16 bits, which is bounded."""
    network, example = words()
    program = weight_only_program(network, example)
    found = targets(program)
    assert found["aten._weight_int8pack_mm.default"] == 4
    assert found["aten.linear.default"] == 1, "of so few outputs it has hardly any weights"
    assert found["aten.embedding.default"] == 2, "rows, and their scales"
    embedding = nn.Sequential(nn.Embedding(50, 32))
    rows = weight_only_program(embedding, Example(example.inputs, example.axes)).module()(example.inputs[0])
    integers, scale = rounded(embedding[0].weight.detach())
    assert integers.dtype == torch.int8
    assert int(integers.abs().max()) == 127
    assert torch.equal(rows, integers[example.inputs[0]].float() * scale[example.inputs[0]][..., None])


@pytest.mark.parametrize("inputs", [4, 20, 32])
def test_rows_of_any_length_are_multiplied(inputs: int) -> None:
    """torch's kernel reads beyond rows that are no multiple of 16 numbers long: other numbers, or a crash."""
    torch.manual_seed(0)
    linear, data = nn.Linear(inputs, 24), torch.randn(5, 3, inputs)
    integers, scale = rounded(linear.weight.detach())
    given = data.to(torch.bfloat16).float()
    expected = given @ (integers.float() * scale.to(torch.bfloat16).float()[:, None]).T + linear.bias
    program = weight_only_program(nn.Sequential(linear), torch.zeros(2, 3, inputs))
    with torch.no_grad():
        computed = program.module()(data)
    assert computed.dtype == torch.float32
    assert (computed - expected).abs().max() < 2**-7 * expected.abs().max()
    (kernel,) = (node for node in program.graph.nodes if "int8pack" in str(node.target))
    assert kernel.args[1].meta["val"].shape[1] % 32 == 0


def test_int8_weights_are_all_that_is_kept() -> None:
    network, example = words()
    program = weight_only_program(network, example)
    matrices = sum(p.numel() for p in network.parameters() if p.ndim > 1)
    kept, padding = network.few.weight.numel(), 12 * (32 - 4)  # type: ignore[union-attr,operator]
    assert tensor_bytes(program) < (matrices - kept) + padding + 4 * kept + 4 * 500
    share = (kept + 50) / (matrices + padding + 50)
    assert float_weight_share(program) == pytest.approx(share), "50 scales of the embedding are floats"


def test_a_weight_that_an_embedding_and_a_layer_share_is_kept_in_both_forms() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(40, 16)

        def forward(self, ids: Tensor) -> Tensor:
            return nn.functional.linear(self.embedding(ids).mean(1), self.embedding.weight)

    torch.manual_seed(0)
    program = weight_only_program(Tied().eval(), torch.randint(0, 40, (2, 5)))
    found = [tensor for tensor in program.state_dict.values() if tensor.dtype == torch.int8]
    assert sorted(tensor.shape for tensor in found) == [(40, 16), (40, 32)], "as an embedding, and as a layer, padded"
    assert not any(tensor.is_floating_point() and tensor.numel() > 40 for tensor in program.state_dict.values())


def test_a_network_without_such_layers_is_refused() -> None:
    with pytest.raises(StageError, match="the network has none"):
        weight_only_program(nn.Sequential(nn.Conv2d(3, 4, 3)), torch.zeros(2, 3, 8, 8))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["dynamic", "weight-only"])
def test_what_is_lowered_is_what_is_meant(mode: str, tmp_path: Path) -> None:
    """By the kernels that the code calls, layer by layer, and by what it computes, for any batch and length."""
    network, example = words()
    program = weight_only_program(network, example) if mode != "dynamic" else dynamic(network, example)
    path = tmp_path / "artifact.pt2"
    inductor.lower(program, path, {"candidate": mode})
    found = audit(program, read_package(path))
    layers = {
        (layer.name, layer.kernel is not None and "_weight_int8pack_mm" in layer.kernel) for layer in found.layers
    }
    if mode == "dynamic":
        assert all(layer.int8 for layer in found.layers)
        assert len(found.layers) == 5
        assert found.int8_mac_share is not None
        assert found.int8_mac_share > 0.8, "attention's products are float"
        assert found.int8_weight_mac_share == 0
    else:
        assert layers == {("attention", True), ("inner", True), ("few", False), ("last", True)}
        few = 64 * 4 + sum(other.macs or 0 for other in found.others)
        assert found.total_macs is not None
        assert found.int8_weight_mac_share == pytest.approx(1 - few / found.total_macs)
        assert found.int8_mac_share == 0
    with IsolatedProcess(path) as process, torch.no_grad():
        for sizes in ((1, 3), (2, 7), (5, 30)):
            ids = torch.randint(0, 50, sizes)
            quality = sqnr_db(program.module()(ids).numpy(), process(ids).numpy())
            assert quality is None or quality > 30  # roundings to integers fall elsewhere


@pytest.mark.parametrize("mode", ["dynamic", "weight-only"])
def test_layers_that_follow_one_another(mode: str) -> None:
    """Without anything between: an embedding, a layer, a layer."""
    torch.manual_seed(0)
    network, ids = (
        nn.Sequential(nn.Embedding(20, 32), nn.Linear(32, 16), nn.Linear(16, 12)).eval(),
        torch.randint(0, 20, (2, 5)),
    )
    program = dynamic(network, ids) if mode == "dynamic" else weight_only_program(network, ids)
    with torch.no_grad():
        quality = sqnr_db(network(ids).numpy(), program.module()(ids).numpy())
    assert quality is not None
    assert quality > 25


@pytest.mark.parametrize("mode", ["dynamic", "weight-only"])
def test_a_network_in_bfloat16_stays_in_it(mode: str) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Embedding(20, 32), nn.Linear(32, 16), nn.LayerNorm(16)).to(torch.bfloat16).eval()
    ids = torch.randint(0, 20, (2, 5))
    program = dynamic(network, ids) if mode == "dynamic" else weight_only_program(network, ids)
    with torch.no_grad():
        found = program.module()(ids)
        assert found.dtype == torch.bfloat16
        assert (found - network(ids)).abs().max() < 0.1


def test_names_that_differ_by_a_dot_are_two_weights() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.a_b = nn.Module(), nn.Module()
            self.a.b_c, self.a_b.c = nn.Linear(32, 16), nn.Linear(32, 16)

        def forward(self, data: Tensor) -> Tensor:
            return torch.as_tensor(self.a.b_c(data) - self.a_b.c(data))  # type: ignore[operator]

    torch.manual_seed(0)
    network, data = Named().eval(), torch.randn(4, 32)
    for program in (dynamic(network, data), weight_only_program(network, data)):
        quality = sqnr_db(network(data).detach().numpy(), program.module()(data).detach().numpy())
        assert quality is not None
        assert quality > 25


def test_an_embedding_that_writes_its_weight_stays_float() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Embedding(50, 64, max_norm=1.0), nn.Linear(64, 16)).eval()
    program = weight_only_program(network, torch.randint(0, 10, (2, 5)))
    ids = torch.randint(20, 50, (2, 5))
    with torch.no_grad():
        found = program.module()(ids)
        quality = sqnr_db(network(ids).numpy(), found.numpy())
    assert quality is not None
    assert quality > 25


def test_small_activations_keep_their_integers() -> None:
    torch.manual_seed(0)
    network, data = nn.Linear(32, 16, bias=False), torch.randn(4, 32) * 1e-5
    with torch.no_grad():
        quality = sqnr_db(network(data).numpy(), dynamic(network, data).module()(data).numpy())
    assert quality is not None
    assert quality > 25


@pytest.mark.parametrize(
    ("kernels", "float_weights", "said"),
    [
        (("aoti_torch_cpu__weight_int8pack_mm", "aoti_torch_cpu__weight_int8pack_mm"), 0.1, None),
        (
            ("aoti_torch_cpu__weight_int8pack_mm", "aoti_torch_cpu_addmm_out"),
            0.1,
            "0.500 of its MACs reads int8",
        ),
        (("aoti_torch_cpu_addmm_out",), None, "0.000 of its MACs reads int8"),
        ((), None, "an unknown share of its MACs reads int8"),
        (("aoti_torch_cpu__weight_int8pack_mm",), 0.9, "0.900 of its weights are floats"),
    ],
)
def test_what_calls_itself_weight_only_is_held_to_its_kernels(
    kernels: tuple[str, ...], float_weights: float | None, said: str | None
) -> None:
    layers = [CheckedLayer(f"layer{n}", "linear", 100, None, False, kernel, "") for n, kernel in enumerate(kernels)]
    found: Any = SimpleNamespace(layers=layers, float_weight_share=float_weights, problems=[])
    _judge_weights(found, 0.95, 0.5)
    assert not found.problems if said is None else said in found.problems[0]
