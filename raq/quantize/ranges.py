"""Many calibrations of one network, each image read once for all sizes; and what of a graph has ranges.

The program that stands for all calibrations is artifact/parametric.py's. Plain torch, never ray.
"""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx
from torch.export import ExportedProgram
from torchao.quantization.pt2e import ObserverBase
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

from raq.errors import StageError
from raq.experiment.ptq import Calibration
from raq.model.dataset import Dataset
from raq.quantize.calibration import calibration_sample
from raq.quantize.export import switch_name
from raq.quantize.ptq import QuantizationOptions, observe, prepare_graph

Ranges = tuple[NDArray[np.float32], NDArray[np.int32]]
"""Scales [K] and zero points [K], in the order of `activation_observers`."""


def prepared_from(
    program: ExportedProgram, backend: str, calibration: Calibration, **rounding: Unpack[QuantizationOptions]
) -> fx.GraphModule:
    """A new graph with observers, of a network that was exported once."""
    return prepare_graph(program.module(), backend, calibration, **rounding)


def calibrate_nested(
    prepared: fx.GraphModule,
    dataset: Dataset,
    settings: Calibration,
    seed: int,
    sizes: Sequence[int],
    keep: Callable[[int, Ranges], None],
    progress: Callable[[int], None] = lambda done: None,
) -> int:
    """Calibrate with the largest of `sizes`, handing the ranges to `keep` whenever one of them is reached.

    A smaller sample is the beginning of a larger one (`calibration_indices`), so that each image is read once. Batches
    are those of a calibration of any one of the sizes alone: one that ends within a batch sees its part of it in a copy
    of the graph. Returns the number of images read, those parts included.
    """
    chosen, read = calibration_sample(dataset, max(sizes), seed), 0
    for start in range(0, len(chosen), settings.batch_size):
        batch = chosen[start : start + settings.batch_size]
        end = start + len(batch)
        for size in sorted(s for s in sizes if start < s < end):
            own = copy.deepcopy(prepared)
            observe(own, dataset, batch[: size - start])
            read += size - start
            keep(size, ranges(own))
        observe(prepared, dataset, batch)
        read += len(batch)
        if end in sizes:
            keep(end, ranges(prepared))
        progress(end)
    return read


def ranges(prepared: fx.GraphModule) -> Ranges:
    """The scale and zero point of every activation that is observed, as seen so far. StageError if one is several."""
    scales, zero_points = [], []
    for observer in activation_observers(prepared):
        scale, zero_point = observer.calculate_qparams()
        if scale.numel() != 1:
            raise StageError("an activation has a range for each channel", "sweeps need one range an activation")
        scales.append(float(scale))
        zero_points.append(int(zero_point))
    return np.array(scales, dtype=np.float32), np.array(zero_points, dtype=np.int32)


def observer_nodes(prepared: fx.GraphModule) -> list[tuple[fx.Node, Any]]:
    """The nodes that call an observer, with it, in the graph's order."""
    modules = dict(prepared.named_modules(remove_duplicate=False))
    return [
        (node, modules[str(node.target)])
        for node in prepared.graph.nodes
        if node.op == "call_module" and isinstance(modules.get(str(node.target)), ObserverBase)
    ]


def is_weight_observer(observer: Any) -> bool:
    """Whether an observer is a weight's: those are symmetric, activations are not (quantizers.py)."""
    return observer.qscheme in (torch.per_channel_symmetric, torch.per_tensor_symmetric)


def activation_observers(prepared: fx.GraphModule) -> list[Any]:
    """The observers of activations, each once, in the graph's order."""
    found = [observer for _, observer in observer_nodes(prepared) if not is_weight_observer(observer)]
    return list({id(observer): observer for observer in found}.values())


def switchable(prepared: fx.GraphModule) -> list[str]:
    """What is quantized and could stay in float, by `export.switch_name`, each once, in the graph's order.

    Layers whose weights are observed, and other operators that read or make what is observed: additions, products,
    pooling.
    """
    observed: set[int] = set()
    for node, observer in observer_nodes(prepared):
        around = node.users if is_weight_observer(observer) else (*node.users, node.args[0])
        observed |= {id(near) for near in around if isinstance(near, fx.Node) and _is_marked(near)}
    return list(dict.fromkeys(switch_name(node) for node in prepared.graph.nodes if id(node) in observed))


def _is_marked(node: fx.Node) -> bool:
    """Whether the quantizer has said of a node what of it is quantized."""
    mark = node.meta.get(Q_ANNOTATION_KEY)
    return mark is not None and (bool(mark.input_qspec_map) or mark.output_qspec is not None)


def save_ranges(path: Path, found: Ranges) -> None:
    """Write ranges as an .npz."""
    np.savez(path, scales=found[0], zero_points=found[1])


def load_ranges(path: Path) -> Ranges:
    """Ranges that `save_ranges` wrote."""
    with np.load(path, allow_pickle=False) as kept:
        return kept["scales"], kept["zero_points"]
