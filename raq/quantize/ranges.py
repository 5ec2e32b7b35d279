"""Many calibrations of one network: each image read once for all sizes, one compiled program for all ranges.

What differs between two calibrations are the ranges of the activations, and nothing else of the graph. So the graph
that stands for them all takes the scales and zero points as inputs, with the weights as their integers hold them, and
is compiled once: fake quantization in float, which is what `convert` comes to (the parity chain of the chosen candidate
shows by how much). Runs through plain torch; sweeps over a cluster are cluster/sweep.py's.
"""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx
from torch.export import Dim, ExportedProgram
from torchao.quantization.pt2e import ObserverBase
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

from raq.artifact.inductor import lower
from raq.errors import StageError
from raq.experiment.schema import Calibration
from raq.model.dataset import Dataset
from raq.quantize.export import MAX_BATCH, switch_name
from raq.quantize.ptq import FixedFakeQuantize, Rounding, calibration_sample, observe, prepare_graph

Ranges = tuple[NDArray[np.float32], NDArray[np.int32]]  # scales [K], zero points [K], in the order of `_slots`


def prepared_from(
    program: ExportedProgram, backend: str, calibration: Calibration, **rounding: Unpack[Rounding]
) -> fx.GraphModule:
    """A fresh graph with observers, of a network that was exported once."""
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
    for observer in _slots(prepared):
        scale, zero_point = observer.calculate_qparams()
        if scale.numel() != 1:
            raise StageError("an activation has a range for each channel", "sweeps need one range an activation")
        scales.append(float(scale))
        zero_points.append(int(zero_point))
    return np.array(scales, dtype=np.float32), np.array(zero_points, dtype=np.int32)


def compile_for_all_ranges(
    prepared: fx.GraphModule, example: Tensor, path: Path, names: Sequence[str] | None = None
) -> None:
    """The program (images [n, 3, H, W], scales [K], zero points [K]) -> logits, compiled, as a package at `path`.

    names: of layers and operators (`switchable`); then a fourth input, bool [L], says which of them are quantized: the
    others compute in float, from the float weight and the input as it is.
    """
    graph = ranges_as_inputs(prepared, names)
    count = len(_slots(prepared))
    inputs: tuple[Tensor, ...] = (example, torch.ones(count), torch.zeros(count, dtype=torch.int32))
    inputs += () if names is None else (torch.ones(len(names), dtype=torch.bool),)
    shapes = ({0: Dim("batch", min=1, max=MAX_BATCH)}, *(None for _ in inputs[1:]))
    program = torch.export.export(graph, inputs, strict=True, dynamic_shapes=shapes)
    lower(program, path, {"candidate": "simulated"})


def with_ranges(
    network: Callable[..., Any], found: Ranges, quantized: Sequence[bool] | None = None
) -> Callable[[Tensor], Tensor]:
    """The compiled program as a network with these ranges; quantized: of one compiled for layers, which of them are."""
    scales, zero_points = torch.from_numpy(found[0]), torch.from_numpy(found[1])
    masks = () if quantized is None else (torch.tensor(quantized),)

    def run(images: Tensor) -> Tensor:
        logits = network(images, scales, zero_points, *masks)
        return logits[0] if isinstance(logits, (tuple, list)) else logits

    return run


def _observer_nodes(prepared: fx.GraphModule) -> list[tuple[fx.Node, Any]]:
    modules = dict(prepared.named_modules(remove_duplicate=False))
    return [
        (node, modules[str(node.target)])
        for node in prepared.graph.nodes
        if node.op == "call_module" and isinstance(modules.get(str(node.target)), ObserverBase)
    ]


def _weighs(observer: Any) -> bool:
    """Whether an observer is a weight's: those are symmetric, activations are not (quantizers.py)."""
    return observer.qscheme in (torch.per_channel_symmetric, torch.per_tensor_symmetric)


def _slots(prepared: fx.GraphModule) -> list[Any]:
    """The observers of activations, each once, in the graph's order."""
    return list({id(observer): observer for _, observer in _observer_nodes(prepared) if not _weighs(observer)}.values())


def switchable(prepared: fx.GraphModule) -> list[str]:
    """What is quantized and could stay in float, by `capture.switch_name`, each once, in the graph's order.

    Layers whose weights are observed, and other operators that read or make what is observed: additions, products,
    pooling.
    """
    observed: set[int] = set()
    for node, observer in _observer_nodes(prepared):
        around = node.users if _weighs(observer) else (*node.users, node.args[0])
        observed |= {id(near) for near in around if isinstance(near, fx.Node) and _is_marked(near)}
    return list(dict.fromkeys(switch_name(node) for node in prepared.graph.nodes if id(node) in observed))


def _is_marked(node: fx.Node) -> bool:
    """Whether the quantizer has said of a node what of it is quantized."""
    mark = node.meta.get(Q_ANNOTATION_KEY)
    return mark is not None and (bool(mark.input_qspec_map) or mark.output_qspec is not None)


def ranges_as_inputs(prepared: fx.GraphModule, names: Sequence[str] | None = None) -> fx.GraphModule:
    """A copy whose observers of activations are arithmetic on two further inputs, and whose weights are rounded.

    names: of layers and operators (`switchable`) that a third further input switches: what is off reads what its
    observers read, and what it makes itself is passed on as it is to those who have no switch.
    """
    own = copy.deepcopy(prepared)
    graph = own.graph
    slots = {id(observer): n for n, observer in enumerate(_slots(own))}
    for node in [n for n in graph.nodes if n.op == "call_module" and str(n.target).startswith("_guards")]:
        graph.erase_node(node)  # checks of the one input that the graph was exported with
    last = [node for node in graph.nodes if node.op == "placeholder"][-1]
    with graph.inserting_after(last):
        scales = graph.placeholder("scales")
    with graph.inserting_after(scales):
        zero_points = graph.placeholder("zero_points")
    switches: dict[str, fx.Node] = {}
    if names is not None:
        with graph.inserting_after(zero_points):
            quantized = graph.placeholder("quantized")
        with graph.inserting_after(quantized):
            for n, name in enumerate(names):
                switches[name] = graph.call_function(torch.ops.aten.select.int, (quantized, 0, n))
    for number, (node, observer) in enumerate(_observer_nodes(own)):
        with graph.inserting_before(node):
            if _weighs(observer):
                if node.args[0].op != "get_attr":  # type: ignore[union-attr]
                    raise StageError(
                        f"the weight {node.args[0]} is computed by the model",
                        "such a model cannot be swept: leave sweep out",
                    )
                weight = _attribute(own, str(node.args[0].target))  # type: ignore[union-attr]
                observer(weight)
                own.register_buffer(f"_rounded_{number}", FixedFakeQuantize(observer)(weight).detach())
                new = graph.get_attr(f"_rounded_{number}")
            else:
                slot = slots[id(observer)]
                scale = graph.call_function(torch.ops.aten.select.int, (scales, 0, slot))
                zero_point = graph.call_function(torch.ops.aten.select.int, (zero_points, 0, slot))
                bounds = (observer.quant_min, observer.quant_max)
                new = graph.call_function(fake_quantize, (node.args[0], scale, zero_point, *bounds))
        made = node.args[0]
        assert isinstance(made, fx.Node)
        for user in list(node.users):
            switch = switches.get(switch_name(user)) or switches.get(switch_name(made))
            if switch is not None:
                with graph.inserting_before(user):
                    read = graph.call_function(torch.ops.aten.where.self, (switch, new, made))
                user.replace_input_with(node, read)
        node.replace_all_uses_with(new)
        graph.erase_node(node)
    graph.set_codegen(fx.graph.CodeGen())  # the exported one knows a single input
    own.delete_all_unused_submodules()
    graph.lint()
    own.recompile()
    return own


def fake_quantize(values: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int) -> Tensor:
    """Rounding to the integers of a scale and back, as torch.fake_quantize_per_tensor_affine does it, fusible."""
    integers = torch.clamp(torch.round(values * (1.0 / scale)) + zero_point, low, high)
    return (integers - zero_point) * scale


def _attribute(module: fx.GraphModule, name: str) -> Tensor:
    owner, _, leaf = name.rpartition(".")
    tensor: Tensor = getattr(module.get_submodule(owner), leaf)
    return tensor.detach()
