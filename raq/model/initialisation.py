"""Layers rescaled before training where an untrained network is too quiet, or too loud. Must not import ray."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from raq.model.dataset import Dataset, calibration_indices
from raq.model.inputs import copies
from raq.model.losses import Loss

DIED_OUT = 0.1  # a standard deviation of the last layer's input, over samples
MIN_DEVIATION, MAX_DEVIATION = 0.25, 4.0  # those that a layer's output may have
ROUNDS = 3
WORSE = 1.25  # times the loss of outputs that are all 0: what is above that is worse than knowing nothing
INFORMED = 0.9  # times that loss: what some share of the outputs has below that, they know something
SHARES = tuple(2.0**-n for n in range(1, 13))
LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)


def rescale_layers(network: nn.Module, inputs: tuple[Tensor, ...]) -> list[str]:
    """Scale layers' weights in place so that a signal reaches the last one; the names of those that were scaled.

    Mishkin and Matas 2016, All You Need Is a Good Init, without its orthogonal start: layer by layer, in order of
    execution, to outputs of a standard deviation of 1 on the batch `inputs` [n, ...]. Nothing is done where the last
    layer's input varies from sample to sample by a standard deviation above DIED_OUT, as it does behind most
    normalisations and in trained networks; of the layers, those whose output is between MIN_DEVIATION and
    MAX_DEVIATION are left as they are, and so are the last one and those that do not learn, share a weight with
    another, or compute theirs anew.
    """
    with _in_training(network), torch.no_grad():
        executed, last_input = _executed(network, inputs)
        if len(executed) < 2 or last_input is None or _spread(last_input) > DIED_OUT:
            return []
        able, rescaled = _scalable(network), []
        for name in (one for one in executed[:-1] if one in able):
            layer = network.get_submodule(name)
            for round_number in range(ROUNDS):
                output = _output_of(layer, network, inputs)
                deviation = 0.0 if output is None else float(output.std())
                if deviation == 0 or (round_number == 0 and MIN_DEVIATION <= deviation <= MAX_DEVIATION):
                    break
                for one in _weights(layer):
                    one.div_(deviation)
                if name not in rescaled:
                    rescaled.append(name)
    return rescaled


def quieten_last_layer(network: nn.Module, inputs: tuple[Tensor, ...], loss: Callable[[Tensor], Tensor]) -> list[str]:
    """Scale the last layer's weights in place where its outputs are worse than none; its name, if that was done.

    `loss` is that of outputs [n, ...], by sample [n]. Above WORSE times the loss of outputs that are all 0, as where
    torchvision's EfficientNets draw the layer for ten classes eleven times as wide as torch itself would, outputs are
    scaled to a standard deviation of MIN_DEVIATION. Left as they are: outputs that say something of the targets, though
    too loudly (some share of them has less than INFORMED times that loss: what is trained, and too sure of itself); a
    layer that does not learn, shares its weight or computes it anew; and a network whose loss that does not bring
    below.
    """
    with _in_training(network), torch.no_grad():
        executed, _ = _executed(network, inputs)
        outputs = network(*copies(inputs))
        if not executed or executed[-1] not in _scalable(network) or not isinstance(outputs, Tensor):
            return []
        chance, deviation = float(loss(torch.zeros_like(outputs)).mean()), float(outputs.std(correction=0))
        if not deviation > 0 or not float(loss(outputs).mean()) > WORSE * chance > 0:
            return []
        if min(float(loss(outputs * share).mean()) for share in SHARES) < INFORMED * chance:
            return []
        layer = network.get_submodule(executed[-1])
        kept = [one.clone() for one in _weights(layer)]
        for one in _weights(layer):
            one.mul_(MIN_DEVIATION / deviation)
        if float(loss(network(*copies(inputs))).mean()) < WORSE * chance:
            return [executed[-1]]
        for one, was in zip(_weights(layer), kept, strict=True):
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
    """The layers in the order in which they first run, but at the end the one that runs last, and what that reads."""
    runs: list[str] = []
    read: list[Tensor | None] = [None]

    def note(name: str, given: tuple[Any, ...]) -> None:
        runs.append(name)
        read[0] = given[0] if given else None

    hooks = [
        module.register_forward_pre_hook(lambda _, given, name=name: note(name, given))
        for name, module in network.named_modules()
        if isinstance(module, LAYERS)
    ]
    try:
        network(*copies(inputs))
    finally:
        for hook in hooks:
            hook.remove()
    last = runs[-1:]
    return [name for name in dict.fromkeys(runs) if name not in last] + last, read[0]


def _scalable(network: nn.Module) -> set[str]:
    """The layers whose weight and bias are their own, learn, and are what the layer computes with."""
    owners = Counter(id(one) for _, one in network.named_parameters(remove_duplicate=False))
    found = set()
    for name, module in network.named_modules():
        if not isinstance(module, LAYERS):
            continue
        # of parametrizations and of torch.nn.utils.weight_norm, `weight` is computed anew from others
        used = [module._parameters.get(key) for key in ("weight", "bias") if getattr(module, key, None) is not None]
        if all(one is not None and one.requires_grad and owners[id(one)] == 1 for one in used):
            found.add(name)
    return found


def _weights(layer: nn.Module) -> list[nn.Parameter]:
    """Its weight, and its bias if it has one."""
    return [one for key in ("weight", "bias") if (one := layer._parameters.get(key)) is not None]


def _spread(values: Tensor) -> float:
    """How far apart samples are: the root of the mean over all features of the variance over samples."""
    return float(values.flatten(1).var(0, correction=0).mean().sqrt())


def _output_of(layer: nn.Module, network: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor | None:
    """What a layer gives first when the network runs; None if it does not run."""
    found: list[Tensor] = []
    hook = layer.register_forward_hook(lambda _, given, output: found.append(output))
    try:
        network(*copies(inputs))
    finally:
        hook.remove()
    return found[0] if found else None
