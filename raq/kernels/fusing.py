"""A quantized graph with raq's int8 operators in place of its layers: what dequantizes, multiplies, adds and quantizes
again becomes one operator that reads and stores int8. What does not match stays as it is, in float."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import Dim, ExportedProgram

import raq.kernels.operators  # noqa: F401  registers them
from raq.kernels.reference import HIGHEST, LOWEST
from raq.quantize.convert import drop_unused_tensors
from raq.quantize.cuda_quantizer import ADDITIONS, RELUS, aten, bounds_of, kernels_of, shortcut_of

decomposed = torch.ops.quantized_decomposed
QUANTIZE, DEQUANTIZE = decomposed.quantize_per_tensor.default, decomposed.dequantize_per_tensor.default
DEQUANTIZE_CHANNELS = decomposed.dequantize_per_channel.default
MAX_PRODUCTS = (2**31 - 1) // 128**2  # that int32 holds the sum of
FEW_CHANNELS, ALIGNED = 16, 4  # below so many, a kernel's reads of a pixel are whole words only if it has multiples
CONV_DEFAULTS: tuple[Any, ...] = (None, [1, 1], [0, 0], [1, 1], 1)  # bias, stride, padding, dilation, groups


@dataclass(frozen=True)
class Match:
    """A layer that an int8 kernel computes.

    layer: its node; data: int8, and its scale; weight: int8, as a node, and its scales; bias; addend: int8, and its
    scale; ends: whether ReLU follows, and its upper bound; replaced: what the kernel's outcome is in place of;
    out_scale: of what it stores, None for float32.
    """

    layer: fx.Node
    data: tuple[fx.Node, float]
    weight: tuple[fx.Node, Any]
    bias: fx.Node | None
    addend: tuple[fx.Node, float] | None
    relu: bool
    ceiling: float | None
    replaced: fx.Node
    out_scale: float | None


def matches(graph: fx.Graph) -> list[Match]:
    """The layers of a converted graph that int8 kernels compute, in order."""
    found = [_match(chain) for chain in kernels_of(graph)]
    return [match for match in reversed(found) if match is not None]


def _match(chain: list[fx.Node]) -> Match | None:
    layer = chain[0]
    data, weight = _integers(layer.args[0]), _weights(layer.args[1])
    if data is None or weight is None or not _sums_fit(layer):
        return None
    addend, relu, ceiling, last = None, False, None, layer
    for node in chain[1:]:
        if node.target in ADDITIONS:
            addend = _integers(shortcut_of(node, last))
            if addend is None:
                break
        elif node.target in RELUS:
            relu, ceiling = True, bounds_of(node)[1]
        else:
            break
        last = node
    bias = layer.args[2] if len(layer.args) > 2 else None
    assert bias is None or isinstance(bias, fx.Node)
    after = next(iter(last.users), None)
    stored = _stored_scale(after) if after is not None and len(last.users) == 1 else None
    replaced = last if stored is None or after is None else after
    return Match(layer, data, weight, bias, addend, relu, ceiling, replaced, stored)


def _integers(node: Any) -> tuple[fx.Node, float] | None:
    """What a dequantized value was, if it was symmetric int8, and its scale."""
    if not isinstance(node, fx.Node) or node.target is not DEQUANTIZE:
        return None
    given: tuple[Any, ...] = node.args
    source, scale, zero_point, _, _, dtype = given
    return (source, float(scale)) if dtype is torch.int8 and zero_point == 0 else None


def _stored_scale(node: fx.Node) -> float | None:
    """The scale to which a node quantizes as kernels do, if it does."""
    given: tuple[Any, ...] = node.args
    symmetric = node.target is QUANTIZE and given[2:6] == (0, LOWEST, HIGHEST, torch.int8)
    return float(given[1]) if symmetric else None


def _weights(node: Any) -> tuple[fx.Node, Any] | None:
    """Of dequantized int8 weights the integers and the scale or scales."""
    if not isinstance(node, fx.Node):
        return None
    if node.target is DEQUANTIZE:
        return _integers(node)
    given: tuple[Any, ...] = node.args
    by_output = node.target is DEQUANTIZE_CHANNELS and given[3] == 0 and given[6] is torch.int8
    return (given[0], given[1]) if by_output else None


def _sums_fit(layer: fx.Node) -> bool:
    weight: Any = layer.args[1]
    products: int = math.prod(weight.meta["val"].shape[1:])
    return products <= MAX_PRODUCTS


def with_int8_operators(program: ExportedProgram) -> ExportedProgram:
    """The program with an operator for every match, for any size that it was exported for; itself if there is none."""
    module = program.module()
    found = matches(module.graph)
    if not found:
        return program
    made: dict[fx.Node, fx.Node] = {}
    for number, match in enumerate(found):
        made[match.replaced] = _replace(module, match, f"int8_{number}", made)
    for match in reversed(found):
        _erase(match.replaced)
    module.graph.eliminate_dead_code()
    module.recompile()
    drop_unused_tensors(module)
    assert program.example_inputs is not None
    return torch.export.export(module, program.example_inputs[0], strict=True, dynamic_shapes=_shapes_of(program))


def _shapes_of(program: ExportedProgram) -> tuple[dict[int, Any], ...]:
    """Which sizes of the inputs may vary, as torch.export takes it."""
    named = set(program.graph_signature.user_inputs)
    dims: dict[str, Any] = {}
    shapes = []
    for node in program.graph.nodes:
        if node.op != "placeholder" or node.name not in named:
            continue
        varying = {}
        for place, size in enumerate(node.meta["val"].shape):
            if isinstance(size, torch.SymInt):
                bounds = program.range_constraints[size.node.expr]
                name = str(size)
                dims.setdefault(name, Dim(name, min=max(1, int(bounds.lower)), max=int(bounds.upper)))
                varying[place] = dims[name]
        shapes.append(varying)
    return tuple(shapes)


def _replace(module: Any, match: Match, name: str, known: dict[fx.Node, fx.Node]) -> fx.Node:
    """Put the operator before what it replaces, whose users read it. known: by what was replaced, what replaced it."""
    graph: fx.Graph = module.graph
    layer = match.layer
    tensors = _tensors(module, match)
    with graph.inserting_before(match.replaced):
        read = []
        for key, tensor in zip(("weight", "scale", "bias"), tensors, strict=True):
            module.register_buffer(f"{name}_{key}", tensor)
            read.append(graph.get_attr(f"{name}_{key}"))
        inverse = None if match.out_scale is None else 1.0 / match.out_scale
        data = known.get(match.data[0], match.data[0])
        missing = tensors[0].shape[-1] - _channels_in(module, match)
        if missing:
            data = graph.call_function(aten.constant_pad_nd.default, (data, [0, 0, 0, 0, 0, missing]))
        if layer.target is aten.linear.default:
            made = graph.call_function(
                torch.ops.raq.int8_linear.default, (data, *read, match.relu, match.ceiling, inverse)
            )
        else:
            _, stride, padding, dilation, groups = _options(layer)
            addend, step = match.addend or (None, 1.0)
            addend = known.get(addend, addend) if addend is not None else None
            places = [_pair(value) for value in (stride, padding, dilation)]
            made = graph.call_function(
                torch.ops.raq.int8_conv2d.default,
                (data, *read, addend, step, match.relu, match.ceiling, inverse, *places, groups),
            )
    made.meta = {key: value for key, value in match.replaced.meta.items() if key in ("val", "nn_module_stack")}
    match.replaced.replace_all_uses_with(made)
    return made


def _erase(node: fx.Node) -> None:
    """Erase what nothing reads, and then what it alone has read: to torch, a ReLU in place is never dead code."""
    stale = [node]
    while stale:
        last = stale.pop()
        if not last.users and not last._erased and last.op == "call_function":
            stale += last.all_input_nodes
            last.graph.erase_node(last)


def _tensors(module: Any, match: Match) -> tuple[Tensor, Tensor, Tensor]:
    """Weights with their input channels last, a scale and a bias by output channel.

    A first layer's three channels become four, zeros: a pixel is a word then.
    """
    integers, scales = match.weight
    weight = _tensor(module, integers)
    if weight.ndim == 4:
        weight = weight.permute(0, 2, 3, 1)
        channels = weight.shape[-1]
        if 1 < channels < FEW_CHANNELS and _options(match.layer)[4] == 1:
            weight = torch.nn.functional.pad(weight, (0, -channels % ALIGNED))
    weight = weight.contiguous()
    of_weights = _tensor(module, scales) if isinstance(scales, fx.Node) else torch.tensor(float(scales))
    scale = (of_weights.double() * match.data[1]).float().expand(len(weight)).contiguous()
    bias = torch.zeros(len(weight)) if match.bias is None else _tensor(module, match.bias).float()
    return weight, scale, bias.contiguous()


def _channels_in(module: Any, match: Match) -> int:
    """Of a group, as the network has them."""
    return _tensor(module, match.weight[0]).shape[1]


def _options(layer: fx.Node) -> tuple[Any, ...]:
    """Of a convolution, as CONV_DEFAULTS has them."""
    given: tuple[Any, ...] = layer.args[2:]
    return (*given, *CONV_DEFAULTS[len(given) :])


def _tensor(module: Any, node: fx.Node) -> Tensor:
    assert node.op == "get_attr", node
    owner, _, leaf = str(node.target).rpartition(".")
    found: Tensor = getattr(module.get_submodule(owner), leaf)
    return found.detach()


def _pair(value: Any) -> list[int]:
    given = [int(one) for one in value]
    return given * 2 if len(given) == 1 else given
