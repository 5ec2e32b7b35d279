"""The graph that QAT trains, fake quantizers off, is the network: in evaluation, in training, and when converted."""

import copy
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from raq.artifact.audit import audit_graph
from raq.errors import StageError, UserError
from raq.experiment.ptq import Calibration
from raq.model.parity import sqnr_db
from raq.quantize import convert, ptq, qat, qat_batch_norm
from raq.quantize.export import graph_of

EXAMPLE = torch.zeros(2, 3, 16, 16)
IMAGES = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """Two convolutions with batch norm and one head; `first` and `norm` replace parts of it."""

    def __init__(self, first: nn.Module | None = None, act: nn.Module | None = None, **norm) -> None:
        super().__init__()
        self.conv1 = first or nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8, **norm)
        self.act = act or nn.ReLU()
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(8, **norm)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.bn1(self.conv1(x)))
        return self.fc(self.bn2(self.conv2(x)).mean((2, 3)))


def settled(network: nn.Module) -> nn.Module:
    """With running statistics as small as eps, so that another eps is seen, and gammas and betas of their own."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
            module.running_var.uniform_(1e-4, 2e-3, generator=generator)
            module.running_mean.normal_(generator=generator)
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
            nn.init.uniform_(module.weight, -2, 2, generator=generator)
            nn.init.normal_(module.bias, generator=generator)
    return network


class Residual(nn.Module):
    """A residual block whose branch stochastic depth drops."""

    def __init__(self, drop: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.drop = drop
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.fc((x + self.drop(self.bn(self.conv(x)))).mean((2, 3)))


def after_stem(**settings) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, **settings))


VARIANTS = {
    "as torch has it": Net,
    "eps 1e-3": lambda: Net(eps=1e-3, momentum=0.01),
    "momentum None": lambda: Net(eps=1e-3, momentum=None),
    "not affine": lambda: Net(eps=1e-3, affine=False),
    "groups": lambda: Net(after_stem(padding=1, groups=4), eps=1e-3),
    "depthwise, dilated": lambda: Net(after_stem(dilation=2, groups=8), eps=1e-3),
    "padding same": lambda: Net(nn.Conv2d(3, 8, 3, padding="same"), eps=1e-3),
    "padding reflect": lambda: Net(nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect"), eps=1e-3),
    "stride": lambda: Net(nn.Conv2d(3, 8, 3, stride=2, padding=(1, 0)), eps=1e-3),
    "transposed": lambda: Net(nn.ConvTranspose2d(3, 8, 3, stride=2, output_padding=1), eps=1e-3),
    "leaky relu": lambda: Net(act=nn.LeakyReLU(0.3), eps=1e-3),
    "hardtanh": lambda: Net(act=nn.Hardtanh(-0.3, 0.7), eps=1e-3),
    "stochastic depth": lambda: Residual(StochasticDepth(0.3, "row")),
}  # fmt: skip


CONVERTED = (
    "as torch has it", "eps 1e-3", "momentum None", "not affine", "groups", "padding same", "stride", "transposed",
    "stochastic depth",
)  # fmt: skip


def prepared_of(network: nn.Module):
    return qat.prepare_qat(network, EXAMPLE, "x86", reduce_range=False)


@cache
def variant(name: str):
    """A variant of the network, and its prepared graph: made once, copied by those who change it."""
    torch.manual_seed(0)
    network = settled(VARIANTS[name]())
    return copy.deepcopy(network), prepared_of(network)


@pytest.mark.parametrize("name", VARIANTS)
def test_prepared_is_the_network_in_evaluation_and_training(name: str) -> None:
    """Both modes against the eager network: outputs, and what a batch leaves in the running statistics."""
    reference, prepared = copy.deepcopy(variant(name))
    prepared.apply(qat.disable_observer)
    prepared.apply(qat.disable_fake_quant)
    qat.set_graph_mode(prepared, training=False, norms=False)
    with torch.no_grad():
        torch.testing.assert_close(prepared(IMAGES), reference.eval()(IMAGES), rtol=1e-4, atol=1e-4)
    if name == "stochastic depth":  # random in training: see below
        return
    qat.set_graph_mode(prepared, training=True, norms=True)
    reference.train()
    for _ in range(2):
        torch.testing.assert_close(prepared(IMAGES), reference(IMAGES), rtol=1e-3, atol=1e-3)
    left = prepared.state_dict()
    for key, expected in reference.state_dict().items():
        torch.testing.assert_close(left[key], expected, rtol=1e-4, atol=1e-5, msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.parametrize("name", CONVERTED)
def test_converted_is_the_prepared_graph(name: str) -> None:
    """Batch norms are folded with the network's own constants, and nothing of training is left in the program."""
    prepared = copy.deepcopy(variant(name)[1])
    prepared(IMAGES)  # ranges
    qat.set_graph_mode(prepared, training=False, norms=False)
    prepared.apply(qat.disable_observer)
    with torch.no_grad():
        expected = prepared(IMAGES)
        program = convert.convert(prepared, EXAMPLE)
        found = program.module()(IMAGES)
    distance = sqnr_db(expected.numpy(), found.numpy())
    assert distance is None or distance > 25, "rounding of single activations at most"
    operators = {str(node.target) for node in program.graph.nodes}
    assert not operators & {"aten.add_.Tensor", "aten.dropout.default", "aten.new_ones.default"}
    if name in ("as torch has it", "eps 1e-3", "momentum None", "groups", "stride"):
        assert not any("batch_norm" in operator for operator in operators)


def test_a_gamma_of_zero_is_no_division_by_zero() -> None:
    network = settled(Net())
    with torch.no_grad():
        network.bn1.weight[2] = 0.0
    prepared = prepared_of(network)
    assert torch.isfinite(copy.deepcopy(prepared)(IMAGES)).all(), "in training"
    qat.set_graph_mode(prepared, training=False, norms=False)
    prepared(IMAGES)  # ranges
    program = convert.convert(prepared, EXAMPLE)
    distance = sqnr_db(network.eval()(IMAGES).detach().numpy(), program.module()(IMAGES).numpy())
    assert distance is not None and distance > 15, "the channel is what it was: a constant"


def test_batches_are_counted_in_training_only() -> None:
    prepared = prepared_of(Net())
    assert int(prepared.state_dict()["bn1.num_batches_tracked"]) == 0, (
        "looking whether it is the network counts nothing"
    )
    prepared(IMAGES)
    qat.set_graph_mode(prepared, training=False, norms=False)
    prepared(IMAGES)
    qat.set_graph_mode(prepared, training=True, norms=False)
    prepared(IMAGES)
    assert int(prepared.state_dict()["bn1.num_batches_tracked"]) == 1


@pytest.mark.parametrize(("mode", "images"), [("row", 300), ("batch", 1)])
def test_stochastic_depth_drops_whole_branches_in_training(mode: str, images: int) -> None:
    """Each image's output is one of two: the branch dropped, or scaled by 1 over the share kept; as often as asked."""
    torch.manual_seed(0)
    network = settled(Residual(StochasticDepth(0.3, mode)))
    prepared = prepared_of(network)
    prepared.apply(qat.disable_observer)
    prepared.apply(qat.disable_fake_quant)
    qat.set_graph_mode(prepared, training=True, norms=False)
    network.eval()
    one = IMAGES[:1].expand(images, -1, -1, -1)
    with torch.no_grad():
        stem = network.stem(one)
        branch = network.bn(network.conv(stem))
        dropped, kept = (network.fc((stem + factor * branch).mean((2, 3))) for factor in (0.0, 1 / 0.7))
        draws = [prepared(one) for _ in range(1 if mode == "row" else 300)]
    found = torch.cat(draws)
    is_dropped = (found - dropped[:1]).abs().amax(1) < 1e-4
    is_kept = (found - kept[:1]).abs().amax(1) < 1e-4
    assert (is_dropped | is_kept).all()
    assert 0.2 < is_dropped.float().mean() < 0.4


class Frozen(Net):
    """Its first batch norm never trains, nor does a dropout that its code switches off."""

    def train(self, mode: bool = True) -> nn.Module:
        super().train(mode)
        self.bn1.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(nn.functional.dropout(x, 0.5, training=False))


class Twice(Net):
    """One batch norm called twice."""

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.bn1(self.conv2(self.act(self.bn1(self.conv1(x))))).mean((2, 3)))


@pytest.mark.parametrize("kind", [Frozen, Twice])
def test_what_the_network_does_in_training_is_what_the_graph_does(kind: type) -> None:
    torch.manual_seed(0)
    network = settled(kind(eps=1e-3))
    reference = copy.deepcopy(network).train()
    prepared = prepared_of(network)
    prepared.apply(qat.disable_observer)
    prepared.apply(qat.disable_fake_quant)
    torch.testing.assert_close(prepared(IMAGES), reference(IMAGES), rtol=1e-3, atol=1e-3)
    left = prepared.state_dict()
    assert "bn1.running_mean" in left
    for key, expected in reference.state_dict().items():
        if key in left:  # a frozen norm counts no batches, and a part that is not called is not there
            torch.testing.assert_close(left[key], expected, rtol=1e-4, atol=1e-5, msg=lambda m, key=key: f"{key}: {m}")
    qat.set_graph_mode(prepared, training=False, norms=False)
    prepared.apply(qat.enable_observer)
    prepared(IMAGES)
    assert torch.isfinite(convert.convert(prepared, EXAMPLE).module()(IMAGES)).all()


class Attentive(nn.Module):
    """Dropout inside fused attention, and inside a recurrent layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.gru, self.fc = (
            nn.Linear(48, 8),
            nn.GRU(8, 8, 2, dropout=0.5, batch_first=True),
            nn.Linear(8, 4),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.reshape(x.shape[0], 16, 48))
        x = nn.functional.scaled_dot_product_attention(x, x, x, dropout_p=0.5 if self.training else 0.0)
        return self.fc(self.gru(x)[0].mean(1))


def test_dropout_inside_attention_and_recurrent_layers_is_switched() -> None:
    prepared = prepared_of(Attentive())
    qat.set_graph_mode(prepared, training=False, norms=False)
    assert torch.equal(prepared(IMAGES), prepared(IMAGES))
    qat.set_graph_mode(prepared, training=True, norms=False)
    assert not torch.equal(prepared(IMAGES), prepared(IMAGES))


@pytest.mark.parametrize("how", ["cat", "stack", "output", "flat", "tokens"])
def test_stochastic_depth_wherever_it_stands(how: str) -> None:
    """Into a list, as the output, of vectors and of tokens: there is one dropout for each, of as many dimensions."""

    class Anywhere(Residual):
        def forward(self, x: Tensor) -> Tensor:
            y = self.stem(x)
            branch = self.bn(self.conv(y))
            if how == "cat":
                return self.fc(torch.cat([y, self.drop(branch)], 2).mean((2, 3)))
            if how == "stack":
                return self.fc(torch.stack([self.drop(branch), y]).mean((0, 3, 4)))
            if how == "output":
                return self.drop(self.fc(branch.mean((2, 3))))
            if how == "flat":
                return self.fc(torch.relu(self.drop(torch.relu(branch.mean((2, 3))))))
            tokens = branch.flatten(2).transpose(1, 2)
            return self.fc((tokens + self.drop(tokens)).mean(1))

    network = settled(Anywhere(StochasticDepth(0.5, "row")))
    prepared = prepared_of(network)
    assert sum("dropout" in str(node.target) for node in prepared.graph.nodes) == 1
    prepared.apply(qat.disable_fake_quant)
    qat.set_graph_mode(prepared, training=True, norms=False)
    assert prepared(IMAGES).shape == network.eval()(IMAGES).shape
    assert not torch.equal(prepared(IMAGES), prepared(IMAGES))


def test_a_users_own_stochastic_depth_is_not_taken_for_torchvisions() -> None:
    """Its rate may be the share that is kept."""

    class StochasticDepth(nn.Module):
        p = 0.9

        def forward(self, x: Tensor) -> Tensor:
            return x * torch.bernoulli(torch.full_like(x[:, :1, :1, :1], self.p)) if self.training else x

    with pytest.raises(UserError, match="draws random numbers"):
        prepared_of(Residual(StochasticDepth()))


def test_what_torchao_rewrites_into_what_cannot_run_is_refused() -> None:
    class Transposed(Net):
        def __init__(self) -> None:
            super().__init__(nn.Sequential(nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 8, 3, groups=2)))

    with pytest.raises(StageError, match="does not run: The size of tensor a"):
        prepared_of(Transposed())

    class Auxiliary(Net):
        def forward(self, x: Tensor):
            return (super().forward(x), x.mean()) if self.training else super().forward(x)

    with pytest.raises(UserError, match="another kind of output in training"):
        prepared_of(Auxiliary())


def test_stochastic_depth_does_not_keep_a_residual_sum_from_int8() -> None:
    """The quantizer sees the convolution and the addition after it as one pattern, as without stochastic depth."""
    quantized = [sum(n.op == "call_module" for n in prepared_of(Residual(d)).graph.nodes)
                 for d in (StochasticDepth(0.3, "row"), nn.Identity())]  # fmt: skip
    assert quantized[0] == quantized[1]


def test_other_random_draws_are_refused() -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.randn_like(x) if self.training else x

    with pytest.raises(UserError, match="draws random numbers"):
        prepared_of(Residual(Noisy()))


def test_another_network_is_refused_by_its_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torchao does by itself: eps 1e-5 everywhere."""
    monkeypatch.setattr(qat, "restore_batch_norms", lambda prepared, constants: None)
    with pytest.raises(
        StageError, match=r"another network before any quantization: .*first layer that differs: bn1 \("
    ):
        prepared_of(settled(Net(eps=1e-3)))


def test_a_batch_norm_without_running_statistics_is_refused_by_name() -> None:
    with pytest.raises(UserError, match="bn1 keeps no running statistics"):
        prepared_of(Net(track_running_stats=False))
    with pytest.raises(UserError, match="bn1 keeps no running statistics"):
        ptq.prepare(Net(track_running_stats=False), EXAMPLE, "x86", Calibration(), reduce_range=False)


@pytest.mark.parametrize("name", ["padding same", "padding reflect"])
def test_a_padded_convolution_is_one_layer_in_int8(name: str) -> None:
    """torchao's quantizer refuses both as torch exports them ("not an aten conv2d operator")."""
    network = settled(VARIANTS[name]())
    prepared = ptq.prepare(network, EXAMPLE, "x86", Calibration(observer="minmax"), reduce_range=False)
    expected = network.eval()(IMAGES).detach()
    distance = sqnr_db(expected.numpy(), prepared(IMAGES).detach().numpy())
    assert distance is None or distance > 100
    assert all(layer.annotated for layer in audit_graph(convert.convert(prepared, EXAMPLE)))


@pytest.mark.parametrize(("kernel", "dilation"), [(2, 1), (4, 3), ((2, 3), (1, 2))])
def test_padding_same_of_an_even_kernel(kernel: int, dilation: int) -> None:
    network = Net(nn.Conv2d(3, 8, kernel, padding="same", dilation=dilation)).eval()
    torch.testing.assert_close(graph_of(network, EXAMPLE)(IMAGES), network(IMAGES))


def test_constants_are_those_of_the_modules() -> None:
    network = Net(eps=1e-3, momentum=0.07)
    found = qat_batch_norm.batch_norm_constants(graph_of(network.train(), EXAMPLE).graph, frozenset({"bn2"}))
    assert {name: (c.eps, c.momentum) for name, c in found.items()} == {
        "bn1.running_mean": (1e-3, 0.07), "bn2.running_mean": (1e-3, None)
    }  # fmt: skip
