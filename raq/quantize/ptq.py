"""Quantization after training: export, insert observers, calibrate."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, Required, TypedDict, Unpack

import torch
from torch import Tensor, fx, nn
from torchao.quantization.pt2e import ObserverBase, move_exported_model_to_eval
from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e

from raq.experiment.ptq import Calibration
from raq.model.cache import Array
from raq.model.dataset import Dataset
from raq.model.inputs import Example
from raq.quantize.calibration import calibration_batch, calibration_parts
from raq.quantize.export import graph_of
from raq.quantize.quantizers import QUANTIZERS, SkipLayersQuantizer, quantizer_errors, refuse_unannotated


class QuantizationOptions(TypedDict, total=False):
    """To which integers a graph is rounded."""

    reduce_range: Required[bool]
    """Activations of 7 bits (x86)."""
    per_channel: bool
    """Weights have a scale for each output channel; default true."""


def prepare(
    network: nn.Module,
    example: Tensor | Example,
    backend: str,
    calibration: Calibration,
    floats: Collection[str] = (),
    **rounding: Unpack[QuantizationOptions],
) -> fx.GraphModule:
    """The network's graph with observers where `backend` quantizes; floats: names of layers that stay in float.

    Raises StageError if the quantizer has annotated nothing, which is no error of its own.
    """
    graph = graph_of(network.eval(), example)
    return prepare_graph(graph, backend, calibration, floats, **rounding)


def prepare_graph(
    graph: nn.Module,
    backend: str,
    calibration: Calibration,
    floats: Collection[str] = (),
    **rounding: Unpack[QuantizationOptions],
) -> fx.GraphModule:
    """`prepare` for a network that is exported already."""
    quantizer = QUANTIZERS[backend](qat=False, calibration=calibration, **rounding)
    with quantizer_errors(backend):
        prepared: fx.GraphModule = prepare_pt2e(graph, SkipLayersQuantizer(quantizer, floats) if floats else quantizer)
    refuse_unannotated(prepared, backend)
    return prepared


class FixedFakeQuantize(nn.Module):
    """What an observer stands for: rounding to its range's integers, and back."""

    def __init__(self, observer: Any) -> None:
        super().__init__()
        self.scale, zero_point = observer.calculate_qparams()
        self.zero_point, kind = zero_point.to(torch.int32), zero_point.dtype
        scale = self.scale
        # a histogram's search takes long, and convert asks again: for what stands here then
        observer.calculate_qparams = lambda: (self.scale, self.zero_point.to(kind))
        self.axis = getattr(observer, "ch_axis", -1) if scale.numel() > 1 else -1
        self.low, self.high = observer.quant_min, observer.quant_max

    def change(self, scale: Tensor, zero_point: Tensor) -> None:
        """Round to other integers from now on, as the observer will say too. Both have the shapes that they had."""
        self.scale = scale.reshape(self.scale.shape).to(self.scale.dtype)
        self.zero_point = zero_point.reshape(self.zero_point.shape).to(torch.int32)

    def forward(self, values: Tensor) -> Tensor:
        """The values that integers of this scale can hold."""
        if self.axis < 0:
            return torch.fake_quantize_per_tensor_affine(
                values, self.scale.reshape(()), self.zero_point.reshape(()), self.low, self.high
            )
        return torch.fake_quantize_per_channel_affine(
            values, self.scale, self.zero_point, self.axis, self.low, self.high
        )


@contextmanager
def simulated(prepared: fx.GraphModule) -> Iterator[fx.GraphModule]:
    """The calibrated graph, its observers acting as fake quantizers meanwhile: nothing is observed.

    From here on the ranges stand. What convert should come to, computed without it.
    """
    observers = {
        name: module
        for name, module in prepared.named_modules(remove_duplicate=False)
        if isinstance(module, ObserverBase)
    }
    quantizers = {id(observer): FixedFakeQuantize(observer) for observer in observers.values()}
    try:
        for name, observer in observers.items():
            put_module(prepared, name, quantizers[id(observer)])
        yield prepared
    finally:
        for name, observer in observers.items():
            put_module(prepared, name, observer)


def put_module(graph: fx.GraphModule, name: str, module: nn.Module) -> None:
    """Let the calls of this name go to another module."""
    owner, _, attribute = name.rpartition(".")
    setattr(graph.get_submodule(owner), attribute, module)


def calibrate(
    prepared: fx.GraphModule,
    dataset: Dataset,
    settings: Calibration,
    seed: int,
    progress: Callable[[int], None] = lambda done: None,
) -> None:
    """Run a seeded sample of the training images through the observers, in place.

    Raises UserError if more images are asked for than there are training images.
    """
    done = 0
    for part in calibration_parts(dataset, settings, seed):
        observe(prepared, dataset, part)
        done += len(part)
        progress(done)


def observe(prepared: fx.GraphModule, dataset: Dataset, part: Array) -> None:
    """Run these training images through the observers as one batch, in place."""
    move_exported_model_to_eval(prepared)
    with torch.no_grad():
        prepared(*calibration_batch(dataset, part))
