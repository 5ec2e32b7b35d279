"""How much outputs change by noise in a layer's channels: against the Jacobian, and against noise itself."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raq.errors import StageError
from raq.quantize.export import is_layer
from raq.quantize.folding import folded_graph
from raq.quantize.sensitivity import sensitivities


class Branching(nn.Module):
    """A convolution that is changed in place, one that is read twice, and a linear layer; one that reaches nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 5, 1)
        self.unread, self.last = nn.Conv2d(3, 2, 1), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        found = self.second(F.silu(self.first(x), inplace=True))
        found = found * found.sigmoid()
        return self.last(found.mean((2, 3))) + 0 * self.unread(x).sign().mean()  # type: ignore[no-any-return]


@pytest.fixture
def images() -> Tensor:
    return torch.randn(1, 3, 6, 6).expand(4096, -1, -1, -1).contiguous()  # one image, many draws


def test_they_are_the_squares_of_the_jacobian(images: Tensor) -> None:
    """By channel, of all outputs and positions; the draws of 4,096 samples leave some percent."""
    net = Branching().eval()
    graph = folded_graph(net, images[:2])
    layers = {node for node in graph.graph.nodes if is_layer(node)}
    found = {str(node.meta["nn_module_stack"].popitem()[1][0]): one for node, one in
             sensitivities(graph, (images,), layers).items()}  # fmt: skip

    def behind(added: Tensor) -> Tensor:
        values = F.silu(net.first(images[:1]) + added[None])
        values = net.second(values)
        return net.last((values * values.sigmoid()).mean((2, 3)))[0]  # type: ignore[no-any-return]

    jacobian = torch.autograd.functional.jacobian(behind, torch.zeros(4, 6, 6))
    assert found["first"].tolist() == pytest.approx(jacobian.square().sum((0, 2, 3)).tolist(), rel=0.1)
    assert found["last"].tolist() == pytest.approx([1.0, 1.0, 1.0], rel=0.1)
    assert found["unread"].tolist() == [0.0, 0.0]


def test_small_noise_changes_the_outputs_by_as_much(images: Tensor) -> None:
    net = Branching().eval()
    graph = folded_graph(net, images[:2])
    (layer,) = (
        node
        for node in graph.graph.nodes
        if is_layer(node) and node.meta["val"].shape[1] == 5 and node.meta["val"].ndim == 4
    )
    expected = sensitivities(graph, (images[:1024],), {layer})[layer]
    values = net.second(F.silu(net.first(images)))
    noise = torch.randn(values.shape) * 1e-3

    def rest(found: Tensor) -> Tensor:
        return net.last((found * found.sigmoid()).mean((2, 3)))  # type: ignore[no-any-return]

    change = (rest(values + noise) - rest(values)).double().square().sum(1).mean()
    assert float(change) == pytest.approx(float(expected.sum()) * 1e-6, rel=0.1)


def test_parameters_learn_as_they_did(images: Tensor) -> None:
    net = Branching().eval()
    net.second.weight.requires_grad_(False)
    graph = folded_graph(net, images[:2])
    before = {name: one.requires_grad for name, one in graph.named_parameters()}
    sensitivities(graph, (images[:9],), {node for node in graph.graph.nodes if is_layer(node)})  # the last alone
    assert {name: one.requires_grad for name, one in graph.named_parameters()} == before
    assert all(one.grad is None for one in graph.parameters())


@torch.library.custom_op("raq_tests::without_gradient", mutates_args=())
def without_gradient(x: Tensor) -> Tensor:
    return x.clone()


@without_gradient.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Custom(Branching):
    """One whose convolutions are behind an operator of the user's own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + without_gradient(self.first(x)).mean()  # type: ignore[no-any-return]


def test_an_operator_without_a_gradient_is_named(images: Tensor) -> None:
    graph = folded_graph(Custom().eval(), images[:2])
    with pytest.raises(StageError, match=r"gradient .* cannot be computed: .*without_gradient") as raised:
        sensitivities(graph, (images[:8],), {node for node in graph.graph.nodes if is_layer(node)})
    assert "equalization" in raised.value.hint


class Counting(Branching):
    """One that writes what it computes into a buffer, and has a square root of 0."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("last_seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        found = self.first(x)
        self.last_seen.copy_(found.mean())
        return super().forward(x) + (found * (x[:, :1] > 9)).square().sum((1, 2, 3))[:, None].sqrt()


def test_buffers_stay_and_gradients_that_are_not_finite_are_left_out(images: Tensor) -> None:
    net = Counting().eval()
    graph = folded_graph(net, images[:2])
    layers = {node for node in graph.graph.nodes if is_layer(node)}
    before = {name: one.clone() for name, one in graph.named_buffers()}
    found = sensitivities(graph, (images[:16],), layers)
    assert all(one.isfinite().all() for one in found.values())
    assert sum(float(one.sum()) > 0 for one in found.values()) >= 2
    assert all(torch.equal(one, before[name]) for name, one in graph.named_buffers())


class WritesIntoItsInput(Branching):
    """One that changes what it is given."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.add_(1))


def test_samples_stay_what_they_are(images: Tensor) -> None:
    samples = images[:8].clone()
    graph = folded_graph(WritesIntoItsInput().eval(), samples[:2].clone())
    sensitivities(graph, (samples,), {node for node in graph.graph.nodes if is_layer(node)})
    assert torch.equal(samples, images[:8])
