"""Un-sharing: the same numbers, the same names, no stateless module called twice."""

from collections import Counter

import pytest
import torch
from torch import nn

from raq.model.zoo import build_model
from raq.quantize.unshare import unshare

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    """One ReLU called three times, one pool twice, through two names."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.relu = nn.ReLU()
        self.same = self.relu
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pool(self.same(self.relu(self.conv(self.pool(self.relu(x))))))


class Branching(nn.Module):
    """Control flow that torch.fx does not trace."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.relu(x)) if x.sum() > 0 else self.relu(-x)


def calls(network: nn.Module) -> Counter[int]:
    """How often each instance without state is called."""
    found: Counter[int] = Counter()
    for module in network.modules():
        if not list(module.parameters()) and not list(module.children()):
            module.register_forward_hook(lambda m, i, o: found.update([id(m)]))
    network(IMAGES)
    return found


@pytest.mark.parametrize("build", [Block, lambda: build_model("resnet18-cifar", 10), lambda: nn.Sequential(Block())])
@pytest.mark.parametrize("training", [False, True])
def test_each_call_has_an_instance_of_its_own(build, training: bool) -> None:
    network = build().train(training)
    separate = unshare(network, IMAGES)
    torch.manual_seed(0)
    expected = network(IMAGES)
    torch.manual_seed(0)
    assert torch.equal(separate(IMAGES), expected), "numerically identical"
    assert list(separate.state_dict()) == list(network.state_dict())
    assert {m.training for m in separate.modules()} == {training}
    assert max(calls(network).values()) > 1
    assert max(calls(separate).values()) == 1


class Dropping(nn.Module):
    """A forward that asks for its mode, and an owner that reads an attribute of it."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.offset = 1.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(nn.functional.dropout(self.relu(x), 0.5, self.training))


class Owner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Dropping()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block(x) + self.block.offset


@pytest.mark.parametrize(("build", "separated"), [(Dropping, True), (Owner, False)])
@pytest.mark.parametrize("training", [False, True])
def test_modes_and_attributes_are_kept(build, separated: bool, training: bool) -> None:
    network = build().train(training)
    separate = unshare(network, IMAGES)
    torch.manual_seed(0)
    expected = network(IMAGES)
    torch.manual_seed(0)
    assert torch.equal(separate(IMAGES), expected)
    assert (max(calls(separate).values()) == 1) is separated


def test_the_network_itself_is_not_changed() -> None:
    network = Block()
    before = list(network.named_modules(remove_duplicate=False))
    unshare(network, IMAGES)
    assert list(network.named_modules(remove_duplicate=False)) == before


def test_what_cannot_be_traced_stays_as_it_is() -> None:
    network = Branching()
    separate = unshare(network, IMAGES)
    assert type(separate) is Branching
    assert torch.equal(separate(IMAGES), network(IMAGES))
