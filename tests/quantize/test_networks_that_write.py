"""A network that writes into its input: each comparison gives it a copy, as its twin that does not is compared."""

import warnings
from itertools import repeat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

from raq.experiment.ptq import Calibration
from raq.model.initialisation import rescale_layers
from raq.model.inputs import Example
from raq.model.parity import sqnr_db
from raq.quantize.arithmetic import network_macs
from raq.quantize.bias import correct_biases
from raq.quantize.distillation import distilled
from raq.quantize.learned_rounding import learn_rounding
from raq.quantize.losses import losses
from raq.quantize.ptq import prepare, simulated
from raq.quantize.qat import prepare_qat, prepared_distance_db
from raq.quantize.unshare import unshare
from raq.stages.call import EXAMPLES
from raq.stages.examples import keep_examples


class Normalises(nn.Module):
    """Two convolutions and a linear layer, of an image that is normalised in place, or not."""

    def __init__(self, *, in_place: bool) -> None:
        super().__init__()
        self.in_place = in_place
        self.first, self.second, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = x.sub_(0.5).div_(0.1) if self.in_place else (x - 0.5) / 0.1
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))).mean((2, 3)))


def calibrated(images: Tensor, *, in_place: bool) -> tuple[nn.Module, fx.GraphModule]:
    torch.manual_seed(1)
    network = Normalises(in_place=in_place).eval()
    graph = prepare(network, images[:2].clone(), "x86", Calibration(observer="minmax"), reduce_range=False)
    with torch.no_grad():
        graph(images.clone())
    return network, graph


def layer_losses(network: nn.Module, as_integers: fx.GraphModule, images: Tensor) -> Any:
    return [loss.as_record() for loss in losses(as_integers, (images,))]


def biases(network: nn.Module, as_integers: fx.GraphModule, images: Tensor) -> Any:
    return correct_biases(as_integers, (images,)), as_integers(images.clone())


def rounding(network: nn.Module, as_integers: fx.GraphModule, images: Tensor) -> Any:
    learn_rounding(as_integers, network, repeat((images,)), 5)
    return as_integers(images.clone())


@pytest.mark.parametrize("compared", [layer_losses, biases, rounding])
def test_both_read_what_was_given(compared: Any) -> None:
    images = torch.rand(16, 3, 8, 8)
    before, found = images.clone(), []
    for in_place in (False, True):
        network, graph = calibrated(images, in_place=in_place)
        with simulated(graph) as as_integers, torch.no_grad() if compared is biases else torch.enable_grad():
            found.append(compared(network, as_integers, images))
    assert torch.equal(images, before)
    plain, writing = found
    if compared is rounding:
        assert (sqnr_db(plain.detach().numpy(), writing.detach().numpy()) or 999.0) > 100
    elif compared is biases:
        assert plain[0] == writing[0]
        assert torch.allclose(plain[1], writing[1], atol=1e-6)
    else:
        assert plain == writing


def test_the_loop_keeps_what_the_teacher_reads(digits: Any, tmp_path: Path) -> None:
    """A student that writes as its teacher does, distilled: equal networks differ by nothing before a step."""
    from raq.experiment.training import Train
    from raq.model.checkpoints import LocalContext
    from raq.model.loop import Hooks
    from raq.model.training import train
    from tests.networks import TOP1

    torch.manual_seed(1)
    student, teacher = (Normalises(in_place=True).eval() for _ in range(2))
    student.head = teacher.head = nn.Linear(8, 10)
    teacher.load_state_dict(student.state_dict())
    seen: list[float] = []
    loss = distilled(teacher, 1.0, None)

    def noted(inputs: tuple[Tensor, ...], outputs: Tensor, by_image: Tensor) -> Tensor:
        found = loss(inputs, outputs, by_image)
        seen.append(float(found.detach().max()))
        return found

    asked = {"recipe": "published", "epochs": 1, "batch_size": 64, "precision": "float32", "channels_last": False}
    settings = Train.model_validate(asked)
    train(student, digits, TOP1, settings, 0, LocalContext(tmp_path), Hooks(loss=noted))
    assert seen[0] < 1e-10


class Reused(Normalises):
    """With a ReLU that is called twice."""

    def __init__(self, *, in_place: bool) -> None:
        super().__init__(in_place=in_place)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = x.sub_(0.5).div_(0.1) if self.in_place else (x - 0.5) / 0.1
        return self.head(self.relu(self.second(self.relu(self.first(x)))).mean((2, 3)))


def test_what_is_tried_with_an_example_leaves_it_as_it_is() -> None:
    example = Example((torch.rand(2, 3, 8, 8),))
    before, network = example.inputs[0].clone(), Reused(in_place=True).eval()
    assert network_macs(network, example).total == network_macs(Reused(in_place=False).eval(), example).total
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # modules that stay shared
        unshare(network, example)
    assert torch.equal(example.inputs[0], before)
    prepared = prepare_qat(network, example, "x86", reduce_range=False)
    assert (prepared_distance_db(network, prepared, example) or 999.0) > 100
    assert torch.equal(example.inputs[0], before)


def test_a_rescaled_network_was_tried_on_the_samples() -> None:
    images, found = torch.rand(32, 3, 8, 8), []
    for in_place in (False, True):
        torch.manual_seed(1)
        network = Normalises(in_place=in_place)
        with torch.no_grad():
            network.first.weight.mul_(1e-3)
            network.second.weight.mul_(1e-3)
        before = images.clone()
        assert rescale_layers(network, (images,))
        assert torch.equal(images, before)
        found.append(network.first.weight.detach())
    assert torch.equal(*found)


def test_stored_examples_are_what_the_network_was_given(digits: Any, tmp_path: Path) -> None:
    torch.manual_seed(1)
    network = Normalises(in_place=True).eval()
    call: Any = SimpleNamespace(folder=str(tmp_path), cpus=1)
    count = keep_examples(call, digits, network)["examples"]["count"]  # type: ignore[index, call-overload]
    stored = np.load(tmp_path / EXAMPLES)
    (given,) = next(iter(digits.batches("test", [np.arange(count)], torch.device("cpu")))).inputs
    assert torch.equal(torch.from_numpy(stored["input_0"]), given)
    assert torch.equal(torch.from_numpy(stored["output"]), network(given))
