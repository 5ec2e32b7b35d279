"""Networks whose signal dies out are rescaled; running statistics are those of the samples; settings fit the data."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from raq.experiment.training import Qat, Train
from raq.model.batch_norm import estimate_anew
from raq.model.checkpoints import LocalContext
from raq.model.initialisation import quieten_last_layer, rescale_layers
from raq.model.training import train
from tests.networks import TOP1, Odd, small


def spread_before_the_head(net: Odd, images: Tensor) -> float:
    seen: list[Tensor] = []
    hook = net.head.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    net.train()(images)
    hook.remove()
    return float(seen[0].detach().var(0).mean().sqrt())


def test_a_signal_that_dies_out_reaches_the_last_layer() -> None:
    net, images = Odd(), torch.randn(64, 3, 16, 16)
    head, norm = copy.deepcopy(net.head.state_dict()), copy.deepcopy(net.norm.state_dict())
    assert spread_before_the_head(net, images) < 0.05
    net.norm.load_state_dict(norm)
    rescaled = rescale_layers(net, (images,))
    assert "last" in rescaled
    assert all(torch.equal(net.norm.state_dict()[name], tensor) for name, tensor in norm.items())
    assert all(torch.equal(net.head.state_dict()[name], tensor) for name, tensor in head.items())
    assert spread_before_the_head(net, images) > 0.1
    assert rescale_layers(small(), (images,)) == [], "batch norm keeps its signal"


class Doubtful(nn.Module):
    """A network whose answers do not depend on its last layer's size."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        return 20 * nn.functional.normalize(self.head(x.flatten(1)[:, :12]))


def test_a_last_layer_that_answers_worse_than_chance_is_made_quiet() -> None:
    images, targets = torch.randn(64, 3, 16, 16), torch.randint(10, (64,))

    def loss(outputs: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs, targets, reduction="none")

    def loss_of(network: nn.Module) -> float:
        return float(loss(network.train()(images)).mean().detach())

    loud = Odd()
    rescale_layers(loud, (images,))
    assert quieten_last_layer(loud, (images,), loss) == [], "as torch draws it"
    with torch.no_grad():
        loud.head.weight.mul_(30)
        loud.head.bias.mul_(30)
    others = {name: one.detach().clone() for name, one in loud.named_parameters() if "head" not in name}
    direction = loud.head.weight / loud.head.weight.norm()
    assert loss_of(loud) > 1.25 * math.log(10)
    assert quieten_last_layer(loud, (images,), loss) == ["head"]
    assert loss_of(loud) < 1.1 * math.log(10)
    assert torch.allclose(loud.head.weight / loud.head.weight.norm(), direction, atol=1e-6)
    assert all(torch.equal(loud.get_parameter(name), one) for name, one in others.items())
    with torch.no_grad():  # as sure of itself, and mostly right
        targets = loud.train()(images).argmax(1)
        targets[:20] = (targets[:20] + 1) % 10
        loud.head.weight.mul_(3000)
    assert loss_of(loud) > 1.25 * math.log(10)
    assert quieten_last_layer(loud, (images,), loss) == [], "it knows something"

    doubtful = Doubtful()
    was = copy.deepcopy(doubtful.state_dict())
    assert loss_of(doubtful) > 1.25 * math.log(10)
    assert quieten_last_layer(doubtful, (images,), loss) == [], "nothing is won"
    assert all(torch.equal(doubtful.state_dict()[name], one) for name, one in was.items())


def tied(net: Odd) -> None:
    net.extra = nn.Linear(53, 10)
    net.extra.weight = net.head.weight


def without_a_spread(net: Odd) -> None:
    nn.init.zeros_(net.head.weight)
    nn.init.constant_(net.head.bias, -4.6)


@pytest.mark.parametrize(
    "change",
    [
        tied,
        without_a_spread,
        lambda net: net.head.requires_grad_(False),
        lambda net: nn.utils.parametrizations.weight_norm(net.head),
        lambda net: nn.utils.weight_norm(net.head),
    ],
)
def test_a_last_layer_whose_weight_is_not_its_own_to_change_is_left(change: Any) -> None:
    net, images = Odd(), torch.randn(64, 3, 16, 16)
    with torch.no_grad():
        net.head.weight.mul_(3000)
    change(net)
    was = {name: one.detach().clone() for name, one in net.named_parameters()}
    assert quieten_last_layer(net, (images,), lambda outputs: (outputs - 1e-3).square().mean(1)) == []
    assert all(torch.equal(net.get_parameter(name), one) for name, one in was.items())
    assert "last" in rescale_layers(net, (images,))
    heads = {name: one for name, one in was.items() if "head" in name}
    assert all(torch.equal(net.get_parameter(name), one) for name, one in heads.items())


def test_hidden_layers_that_do_not_learn_or_compute_their_weights_anew_are_left() -> None:
    net, images = Odd(), torch.randn(64, 3, 16, 16)
    nn.utils.weight_norm(net.joined)
    net.last.requires_grad_(False)
    net.wide = nn.utils.parametrizations.weight_norm(net.wide)
    was = {name: one.detach().clone() for name, one in net.named_parameters()}
    assert not {"joined", "last", "wide"} & set(rescale_layers(net, (images,)))
    for name, one in was.items():
        if name.startswith(("joined", "last", "wide")):
            assert torch.equal(net.get_parameter(name), one), name


class Held(nn.Sequential):
    """A network whose first batch norm is never in training."""

    def train(self, mode: bool = True) -> "Held":
        super().train(mode)
        self[1].eval()
        return self


def test_running_statistics_that_are_held_stay() -> None:
    net = Held(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    was = copy.deepcopy(net.state_dict())
    estimate_anew(net, [(torch.randn(8, 3, 8, 8),)])
    now = net.state_dict()
    assert torch.equal(now["1.running_mean"], was["1.running_mean"])
    assert not torch.equal(now["3.running_mean"], was["3.running_mean"])


def test_running_statistics_are_those_of_the_batches() -> None:
    net, images = small(), torch.randn(96, 3, 8, 8) * 3 + 1
    estimate_anew(net, [(part,) for part in images.split(32)])
    first = net[0](images)  # type: ignore[index]
    assert torch.allclose(net[1].running_mean, first.mean((0, 2, 3)), atol=1e-4)  # type: ignore[index]
    assert torch.allclose(net[1].running_var, first.var((0, 2, 3)), rtol=2e-2)  # type: ignore[index]
    assert net[1].momentum == 0.1  # type: ignore[index]
    assert not any(module.training for module in net.modules())


@pytest.mark.parametrize(
    ("settings", "samples", "found"),
    [
        (Train.model_validate({}), 50_000, (128, 0.12, True, (0.5, 0.75, 1.0))),
        (Train.model_validate({}), 5_000, (64, pytest.approx(0.0714, abs=1e-4), True, ())),
        (Train.model_validate({}), 300, (16, pytest.approx(0.0252, abs=1e-4), True, ())),
        (Train.model_validate({"batch_size": 256, "lr": 0.3}), 300, (256, 0.3, True, ())),
        (Train.model_validate({"workers": 16}), 300, (32, pytest.approx(0.0424, abs=1e-4), True, ())),
        (Train.model_validate({"workers": 10}), 1_500, (32, pytest.approx(0.0424, abs=1e-4), True, ())),
        (Train.model_validate({"optimizer": "adamw"}), 50_000, (128, pytest.approx(0.0012), True, (0.5, 0.75, 1.0))),
        (Train.model_validate({"recipe": "published"}), 300, (128, 0.01, False, ())),
        (Qat.model_validate({}), 300, (16, 0.0005, True, ())),
    ],
)
def test_settings_fit_the_data(settings: Train | Qat, samples: int, found: tuple[object, ...]) -> None:
    fitted = settings.for_samples(samples)
    assert (fitted.batch_size, fitted.lr, fitted.augment, fitted.progressive) == found
    assert settings.for_samples(samples, digits=True).augment == (settings.augment or False)
    assert fitted.for_samples(7) == fitted, "what is filled in stays"


def test_defaults_train_a_network_with_little_batch_norm(digits: Any, tmp_path: Path) -> None:
    """On 380 digits, 8 epochs; nothing is set but their number. Without rescaling it is at 10 to 20%."""
    settings = Train.model_validate({"epochs": 8}).for_samples(digits.size("train"), digits=True)
    result = train(Odd(), digits, TOP1, settings, 0, LocalContext(tmp_path))
    assert "last" in result.history[0]["rescaled_layers"]
    assert "rescaled_layers" not in result.history[1]
    assert max(row["validation"] for row in result.history) > 0.6
