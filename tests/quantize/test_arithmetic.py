"""Multiply-accumulates, against counts made by hand; and shares, where attention and recurrences are in float."""

import pytest
import torch
from networks import SATURATES, small
from torch import Tensor, nn
from torch.nn import functional as F

from raq.artifact import audit, inductor
from raq.artifact.generated_code import read_package
from raq.errors import StageError
from raq.experiment.measurement import Require
from raq.experiment.ptq import Calibration
from raq.model.parity import sqnr_db
from raq.plan.requirements import check_results
from raq.quantize import convert, ptq
from raq.quantize.arithmetic import network_macs, operations
from raq.quantize.export import export_program

T, E, HEADS = 16, 24, 4
EXAMPLE = torch.zeros(2, 3, 8, 8)


class Attention(nn.Module):
    """Tokens of 8x8 images as 16 x 12, one layer of attention written as matrix products, and a head."""

    def __init__(self, fused: bool = False) -> None:
        super().__init__()
        self.embed, self.qkv, self.out = nn.Linear(12, E), nn.Linear(E, 3 * E), nn.Linear(E, E)
        self.head, self.fused = nn.Linear(E, 10), fused

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.reshape(x.shape[0], T, 12))
        q, k, v = self.qkv(x).reshape(x.shape[0], T, 3, HEADS, E // HEADS).permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = ((q @ k.transpose(-2, -1)) * (E // HEADS) ** -0.5).softmax(-1) @ v
        return self.head(self.out(y.transpose(1, 2).reshape(x.shape[0], T, E)).mean(1))


LAYERS = T * (12 * E + 3 * E * E + E * E) + 10 * E
PRODUCTS = 2 * T * T * E


class Recurrent(nn.Module):
    """A float LSTM with a small linear layer behind it."""

    def __init__(self, kind: type = nn.LSTM) -> None:
        super().__init__()
        self.recurrent, self.head = kind(12, 32, batch_first=True), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.recurrent(x.reshape(x.shape[0], T, 12))[0][:, -1])


def quantized(network: nn.Module):
    network.eval()
    prepared = ptq.prepare(network, EXAMPLE, "x86", Calibration(observer="minmax"), reduce_range=SATURATES)
    with torch.no_grad():
        prepared(torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    return convert.convert(prepared, EXAMPLE)


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        (Attention, LAYERS + PRODUCTS),
        (lambda: Attention(fused=True), LAYERS + PRODUCTS),
        (Recurrent, T * 4 * 32 * (12 + 32) + 320),
        (lambda: Recurrent(nn.GRU), T * 3 * 32 * (12 + 32) + 320),
        (lambda: Recurrent(nn.RNN), T * 32 * (12 + 32) + 320),
        (lambda: nn.Sequential(nn.ConvTranspose2d(3, 4, 3, stride=2), nn.Flatten()), 8 * 8 * 3 * 4 * 9),
        (lambda: nn.Sequential(nn.Conv2d(3, 6, 3, groups=3, dilation=2), nn.Flatten()), 4 * 4 * 6 * 9),
        (lambda: nn.Sequential(nn.Flatten(2), nn.Conv1d(3, 5, 4)), 61 * 3 * 5 * 4),
    ],
    ids=["attention", "fused attention", "lstm", "gru", "rnn", "transposed", "grouped", "1d"],
)
def test_a_networks_macs(network, expected: int) -> None:
    assert network_macs(network(), EXAMPLE).total == expected


class WrittenOut(nn.Module):
    """A linear layer as a product and a sum, and a gate, which is no product of the kind that counts."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.gate = nn.Parameter(torch.randn(5, 192)), nn.Parameter(torch.randn(1, 5))

    def forward(self, x: Tensor) -> Tensor:
        return (x.flatten(1)[:, None] * self.weight).sum(-1) * self.gate


def test_a_product_that_is_written_out_counts() -> None:
    assert network_macs(WrittenOut(), EXAMPLE).total == 5 * 192


def test_what_cannot_be_looked_into_is_unknown() -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cond(x.sum() > 0, lambda v: v @ v.mT, lambda v: v.sin(), (x,))

    counted = network_macs(Branching(), EXAMPLE)
    assert counted.total is None
    assert "cannot be counted" in counted.unknown[0]


@torch.library.custom_op("profiler::secret", mutates_args=())
def secret(x: Tensor) -> Tensor:
    return x @ x.mT


def test_an_operator_of_the_users_is_unknown_whatever_its_name() -> None:
    class Custom(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.ops.profiler.secret(x)

    assert network_macs(Custom(), EXAMPLE).unknown == ["profiler.secret"]


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_a_bidirectional_stack(kind: type) -> None:
    gates = {nn.LSTM: 4, nn.GRU: 3}[kind]
    network = kind(24, 8, num_layers=2, bidirectional=True, batch_first=True)
    counted = network_macs(network, torch.zeros(2, 8, 24))
    assert counted.total == 8 * 2 * gates * 8 * (24 + 8) + 8 * 2 * gates * 8 * (16 + 8)


def test_the_fused_transformer_layer_counts_as_its_parts() -> None:
    layer = nn.TransformerEncoderLayer(24, 4, 48, batch_first=True).eval()
    by_hand = 10 * (4 * 24 * 24 + 2 * 24 * 48) + 2 * 10 * 10 * 24
    assert network_macs(layer, torch.zeros(1, 10, 24)).total == by_hand, "no gradients: one fused operator"

    class Slow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            with torch.enable_grad():
                return self.layer(x)

    assert network_macs(Slow(), torch.zeros(1, 10, 24)).total == by_hand


def test_what_is_not_known_to_do_no_products_makes_the_total_unknown() -> None:
    class Fourier(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.fft.fft2(x).real

    counted = network_macs(nn.Sequential(nn.Conv2d(3, 3, 3), Fourier()), EXAMPLE)
    assert counted.total is None
    assert counted.unknown == ["aten._fft_c2c"]


class AttentionModule(nn.Module):
    """The same with torch's own module, which reads tokens first and projects what it reads by one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(12, E), nn.Linear(E, 10)
        self.attention = nn.MultiheadAttention(E, HEADS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.reshape(x.shape[0], T, 12)).transpose(0, 1)
        return torch.as_tensor(self.head(self.attention(x, x, x, need_weights=False)[0].mean(0)))


def test_the_projections_of_attention_modules_are_int8(tmp_path) -> None:
    """All four layers, read in the code and named; what torch computes of the program is what the artifact does."""
    torch.manual_seed(0)
    network = AttentionModule()
    program = quantized(network)
    inductor.lower(program, tmp_path / "a.pt2", {"candidate": "ptq", "input": [3, 8, 8]})
    found = audit.audit(program, read_package(tmp_path / "a.pt2"), network_macs(network, EXAMPLE))
    assert len(found.layers) == 4
    assert all(layer.int8 for layer in found.layers)
    assert found.int8_mac_share == pytest.approx(LAYERS / (LAYERS + PRODUCTS), rel=1e-9)
    images = torch.randn(5, 3, 8, 8)
    with torch.no_grad():
        quality = sqnr_db(program.module()(images).numpy(), inductor.load(tmp_path / "a.pt2")(images).numpy())
    assert quality is None or quality > 30


@pytest.mark.parametrize("fused", [pytest.param(False, marks=pytest.mark.slow), True])
def test_attention_counts_in_the_share(fused: bool, tmp_path) -> None:
    """Projections are in int8, the products of activations are not: the share is that by hand, at the gate."""
    network = Attention(fused)
    program = quantized(network)
    assert {o.name for o in operations(program) if o.layer} == {"embed", "qkv", "out", "head"}
    inductor.lower(program, tmp_path / "a.pt2", {"candidate": "ptq", "input": [3, 8, 8]})
    found = audit.audit(program, read_package(tmp_path / "a.pt2"), network_macs(network, EXAMPLE))
    assert all(layer.int8 for layer in found.layers)
    assert found.int8_mac_share == pytest.approx(LAYERS / (LAYERS + PRODUCTS), rel=1e-9)
    assert sum(other.macs or 0 for other in found.others) == PRODUCTS
    results = {"audit": found.as_record()}
    with pytest.raises(
        StageError, match=r"0\.\d+ of its MACs is int8, required is 0\.95; in float: .*(matmul|attention)"
    ):
        check_results(_stage(), results, Require())


def test_a_float_lstm_with_a_small_linear_layer_is_refused(tmp_path) -> None:
    network = Recurrent().eval()
    program = quantized(network)
    inductor.lower(program, tmp_path / "a.pt2", {"candidate": "ptq"})
    counted = network_macs(network, EXAMPLE)
    found = audit.audit(program, read_package(tmp_path / "a.pt2"), counted)
    assert found.int8_mac_share == pytest.approx(320 / (T * 4 * 32 * 44 + 320))
    weights = audit.float_weight_share(program)
    assert weights is not None and weights > 0.9
    results = {"audit": found.as_record(), "float_weight_share": weights}
    with pytest.raises(StageError, match=r"0\.004 of its MACs is int8, .* and 0\.9\d+ of its weights are floats"):
        check_results(_stage(), results, Require())


def test_a_network_that_does_more_than_its_program(tmp_path) -> None:
    """The share is of the FP32 network's arithmetic, whatever the quantized program has left of it."""
    network = small()
    example = torch.zeros(2, 3, 32, 32)
    program = export_program(network, example)
    own = sum(o.macs or 0 for o in operations(program))
    assert own == network_macs(network, example).total
    counted = network_macs(nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), network), example)
    assert audit.total_macs(operations(program), counted) == (own + 32 * 32 * 3 * 27, [])


def _stage():
    from raq.experiment.execution import Resources
    from raq.plan.stages import Stage

    return Stage("lower/ptq", "lower", "quantize", {"candidate": "ptq"}, {}, "f", Resources())
