"""A calibrated graph kept in a file, by what its methods did to it, so that training can go on from it."""

import pickle
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torchao.quantization.pt2e import ObserverBase

from raq.errors import StageError, first_line
from raq.experiment.ptq import Calibration
from raq.model.inputs import Example
from raq.quantize.bias import ADDED, add_bias
from raq.quantize.equalization import MULTIPLIED, Multiplied, multiply
from raq.quantize.export import graph_of
from raq.quantize.folding import fold_batch_norms
from raq.quantize.methods import FOLDED, Made, Source
from raq.quantize.ptq import prepare_graph
from raq.quantize.rewriting import put_named
from raq.quantize.side_by_side import ORIGINALS


def observers(prepared: fx.GraphModule) -> Iterator[tuple[str, ObserverBase]]:
    """The observers of a graph, by every name that calls them."""
    for name, module in prepared.named_modules(remove_duplicate=False):
        if isinstance(module, ObserverBase):
            yield name, module


@dataclass(frozen=True)
class _Kept:
    """What the file has. multiplied: fields of `Multiplied`; ranges: scale and zero point by the observer's name."""

    backend: str
    reduce_range: bool
    per_channel: bool
    floats: list[str]
    calibration: dict[str, Any]
    folded: bool
    multiplied: list[dict[str, Any]]
    equalized: dict[str, Tensor]
    added_biases: dict[str, str]
    corrected: dict[str, Tensor]
    ranges: dict[str, list[Tensor]]


@dataclass(frozen=True)
class Calibrated:
    """A calibrated graph whose tensors are still those in float, and what corrected them.

    added_biases: names of parameters by the node that they are added to; corrected: tensors by name. reduce_range,
    per_channel: as it was quantized.
    """

    prepared: fx.GraphModule
    reduce_range: bool
    per_channel: bool
    added_biases: dict[str, str] = field(default_factory=dict)
    corrected: dict[str, Tensor] = field(default_factory=dict)

    def correct(self) -> None:
        """Put the corrected tensors into the graph."""
        for node in list(self.prepared.graph.nodes):
            if node.name in self.added_biases:
                name = self.added_biases[node.name]
                add_bias(self.prepared, node, name, self.corrected[name])
        for name, tensor in self.corrected.items():
            put_named(self.prepared, name, tensor)
        self.prepared.recompile()


def fix_range(observer: ObserverBase, scale: Tensor, zero_point: Tensor) -> None:
    """Let an observer say this range from now on, whatever it sees."""
    observer.calculate_qparams = lambda: (scale, zero_point)


def pin_ranges(prepared: fx.GraphModule) -> None:
    """Let the observers of a calibrated graph say what they say now from now on."""
    for _, observer in observers(prepared):
        fix_range(observer, *observer.calculate_qparams())


def save_calibrated(made: Made, source: Source, path: Path) -> None:
    """Keep what makes this graph again of the network that it came from: structure, tensors that changed, ranges."""
    prepared, meta = made.prepared, made.prepared.meta
    originals: dict[str, Tensor] = meta.get(ORIGINALS, {})
    folded: dict[str, Tensor] | None = meta.get(FOLDED)
    now = {name: tensor.detach() for name, tensor in (*prepared.named_parameters(), *prepared.named_buffers())}
    equalized: dict[str, Tensor] = {}
    for name, before in (folded or {}).items():
        after = originals.get(name, now.get(name))
        if after is not None and after is not before and not torch.equal(after, before):
            equalized[name] = after
    ranges = {}
    for name, observer in observers(prepared):
        scale, zero_point = observer.calculate_qparams()
        ranges[name] = [scale, zero_point]
    content = _Kept(
        source.backend, source.reduce_range, source.per_channel, list(source.floats),
        made.methods.calibrated_by(source.calibration).model_dump(mode="json"), folded is not None,
        [vars(one) for one in meta.get(MULTIPLIED, [])], equalized, meta.get(ADDED, {}),
        {name: now[name] for name in originals}, ranges,
    )  # fmt: skip
    torch.save(vars(content), path)


def load_calibrated(network: nn.Module, example: Example, path: Path) -> Calibrated:
    """The calibrated graph of this network that was kept there.

    Raises StageError if it is not one of this network.
    """
    try:
        kept = _Kept(**torch.load(path, map_location="cpu", weights_only=True))
        graph = graph_of(network.eval(), example)
        if kept.folded:
            fold_batch_norms(graph)
        for one in kept.multiplied:
            multiply(graph, Multiplied(**one))
        for name, tensor in kept.equalized.items():
            put_named(graph, name, tensor)
        graph.recompile()
        prepared = prepare_graph(
            graph, kept.backend, Calibration.model_validate(kept.calibration), kept.floats,
            reduce_range=kept.reduce_range, per_channel=kept.per_channel,
        )  # fmt: skip
        own = dict(observers(prepared))
        if set(own) != set(kept.ranges):
            raise KeyError("it has other observers")
    except (KeyError, AttributeError, TypeError, RuntimeError, pickle.UnpicklingError) as error:
        raise StageError(
            f"{path} is not of this network, or damaged: {first_line(error)}", "make the candidate ptq again: --fresh"
        ) from error
    for name, observer in own.items():
        fix_range(observer, *kept.ranges[name])
    return Calibrated(prepared, kept.reduce_range, kept.per_channel, kept.added_biases, kept.corrected)
