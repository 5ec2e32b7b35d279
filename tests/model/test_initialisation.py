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
from tests.networks import TOP1, small


class Odd(nn.Module):
    """Five convolutions of odd widths with torch's own initialisation, one batch norm, a depthwise layer, a
    concatenation: what reaches the last layer is a hundredth of what went in."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 13, 3, padding=1), nn.BatchNorm2d(13)
        self.depthwise = nn.Conv2d(13, 13, 3, padding=1, groups=13)
        self.wide, self.joined = nn.Conv2d(13, 27, 3, 2, 1), nn.Conv2d(40, 37, 3, 2, 1)
        self.last, self.head = nn.Conv2d(37, 53, 3, 2, 1), nn.Linear(53, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.depthwise(torch.relu(self.norm(self.first(x)))))
        x = torch.cat([torch.relu(self.wide(x)), nn.functional.avg_pool2d(x, 2)], 1)
        found: Tensor = self.head(torch.relu(self.last(torch.relu(self.joined(x)))).mean((2, 3)))
        return found


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
    with torch.no_grad():  # as sure of itself, and right
        targets = loud.train()(images).argmax(1)
        loud.head.weight.mul_(300)
    assert quieten_last_layer(loud, (images,), loss) == []

    doubtful = Doubtful()
    was = copy.deepcopy(doubtful.state_dict())
    assert loss_of(doubtful) > 1.25 * math.log(10)
    assert quieten_last_layer(doubtful, (images,), loss) == [], "nothing is won"
    assert all(torch.equal(doubtful.state_dict()[name], one) for name, one in was.items())


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
