"""Layers rescaled before training where an untrained network is too quiet, or too loud. Must not import ray."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.utils.parametrize
from torch import Tensor, nn

from raq.model.dataset import Dataset, calibration_indices
from raq.model.losses import Loss

DIED_OUT = 0.1  # a standard deviation of the last layer's input, over samples
LEAST, MOST = 0.25, 4.0  # those that a layer's output may have
ROUNDS = 3
WORSE = 1.25  # times the loss of outputs that are all 0: what is above that is worse than knowing nothing
LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)


def rescale_layers(network: nn.Module, inputs: tuple[Tensor, ...]) -> list[str]:
    """Scale layers' weights in place so that a signal reaches the last one; the names of those that were scaled.

    Mishkin and Matas 2016, All You Need Is a Good Init, without its orthogonal start: layer by layer, in order of
    execution, to outputs of a standard deviation of 1 on the batch `inputs` [n, ...]. Nothing is done where the last
    layer's input varies from sample to sample by a standard deviation above DIED_OUT, as it does behind most
    normalisations and in trained networks; of the layers, those whose output is between LEAST and MOST are left as they
    are, and so is the last one.
    """
    with _in_training(network), torch.no_grad():
        order, last_input = _executed(network, inputs)
        if len(order) < 2 or last_input is None or _spread(last_input) > DIED_OUT:
            return []
        rescaled = []
        for name in order[:-1]:
            layer = network.get_submodule(name)
            for round_number in range(ROUNDS):
                output = _output_of(layer, network, inputs)
                deviation = 0.0 if output is None else float(output.std())
                if deviation == 0 or (round_number == 0 and LEAST <= deviation <= MOST):
                    break
                assert isinstance(layer.weight, Tensor)
                layer.weight.div_(deviation)
                if isinstance(layer.bias, Tensor):
                    layer.bias.div_(deviation)
                if name not in rescaled:
                    rescaled.append(name)
    return rescaled


def quieten_last_layer(network: nn.Module, inputs: tuple[Tensor, ...], loss: Callable[[Tensor], Tensor]) -> list[str]:
    """Scale the last layer's weights in place where its outputs are worse than none; its name, if that was done.

    `loss` is that of outputs [n, ...], by sample [n]. Above WORSE times the loss of outputs that are all 0, as where
    torchvision's EfficientNets draw the layer for ten classes eleven times as wide as torch itself would,
    outputs are scaled to a standard deviation of LEAST. What is trained, or drawn for its number of classes, answers no
    worse than that, and is left as it is; so is a network whose loss that does not bring below.
    """
    with _in_training(network), torch.no_grad():
        order, _ = _executed(network, inputs)
        outputs = network(*inputs)
        chance = float(loss(torch.zeros_like(outputs)).mean())
        if not order or not float(loss(outputs).mean()) > WORSE * chance > 0:
            return []
        layer = network.get_submodule(order[-1])
        parameters = [one for one in (layer.weight, layer.bias) if isinstance(one, Tensor)]
        kept = [one.clone() for one in parameters]
        for one in parameters:
            one.mul_(LEAST / float(outputs.std()))
        if float(loss(network(*inputs)).mean()) < WORSE * chance:
            return [order[-1]]
        for one, was in zip(parameters, kept, strict=True):
            one.copy_(was)
    return []


def rescale_on(
    network: nn.Module, dataset: Dataset, loss: Loss, samples: int, seed: int, device: torch.device
) -> list[str]:
    """`rescale_layers` and `quieten_last_layer` on so many training samples, at once, the same on every rank."""
    chosen = calibration_indices(dataset.size("train"), samples, seed)
    (inputs, targets), *_ = dataset.batches("train", [chosen], device)
    hidden = rescale_layers(network, inputs)
    return hidden + quieten_last_layer(network, inputs, lambda outputs: loss(outputs, targets))


@contextmanager
def _in_training(network: nn.Module) -> Iterator[None]:
    """In training mode, the buffers put back as they were: running statistics take nothing from this."""
    was = network.training
    kept = {name: buffer.clone() for name, buffer in network.named_buffers()}
    with torch.random.fork_rng():
        try:
            network.train()
            yield
        finally:
            for name, buffer in network.named_buffers():
                buffer.copy_(kept.get(name, buffer))
            network.train(was)


def _executed(network: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[list[str], Tensor | None]:
    """The layers in the order in which they first run, and what the last one reads."""
    order: dict[str, None] = {}
    read: list[Tensor | None] = [None]

    def note(name: str, given: tuple[Any, ...]) -> None:
        order.setdefault(name)
        read[0] = given[0] if given else None

    hooks = [
        module.register_forward_pre_hook(lambda _, given, name=name: note(name, given))
        for name, module in network.named_modules()
        if isinstance(module, LAYERS) and not torch.nn.utils.parametrize.is_parametrized(module)
    ]
    try:
        network(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return list(order), read[0]


def _spread(values: Tensor) -> float:
    """How far apart samples are: the root of the mean over all features of the variance over samples."""
    return float(values.flatten(1).var(0, correction=0).mean().sqrt())


def _output_of(layer: nn.Module, network: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor | None:
    """What a layer gives first when the network runs; None if it does not run."""
    found: list[Tensor] = []
    hook = layer.register_forward_hook(lambda _, given, output: found.append(output))
    try:
        network(*inputs)
    finally:
        hook.remove()
    return found[0] if found else None
