"""Is it quantized? Each layer of the quantized program, matched with the kernel that the artifact calls for it.

The share of multiply-accumulates in int8 is that of the layers for which the generated code calls an integer kernel,
over all that the FP32 network does: products of activations, as in attention, and recurrences count in full, and if the
arithmetic of one operator is not known, the share is not. Nothing of an artifact is run.
"""

from collections import Counter
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram

from raq.artifact.generated_code import GeneratedCode
from raq.artifact.wrapper_code import WEIGHT_ONLY_KERNEL, KernelCall
from raq.quantize.arithmetic import NetworkMacs, Operation, operations
from raq.quantize.export import WEIGHT_ONLY, layer_name, layers

BETWEEN = {
    "add": "add", "add_": "add", "cat": "concat", "max_pool2d": "pool", "avg_pool2d": "pool",
    "adaptive_avg_pool2d": "pool", "adaptive_max_pool2d": "pool", "mean": "pool",
}  # fmt: skip
INT8_WEIGHTS = "its weights are int8, and its products are of bfloat16"
VIEWS = ("view", "reshape", "flatten", "permute", "transpose", "t", "dropout", "squeeze", "unsqueeze", "detach")
NOT_FOUND = "quantized in the graph, but the compiled program computes it in float: not frozen, or no such int8 fusion"


@dataclass(frozen=True)
class LayerAudit:
    """One convolution or linear layer.

    annotated: the graph means it to be int8; int8: the artifact calls an integer kernel for it; kernel: which kernel
    it calls, None if none could be matched; reason: why it is not int8.
    """

    name: str
    operator: str
    macs: int
    annotated: bool
    int8: bool
    kernel: str | None
    reason: str


@dataclass(frozen=True)
class ElementwiseAudit:
    """An add, pool or concatenation: int8 if all that it reads was dequantized for it (it moves bytes, not floats)."""

    name: str
    operator: str
    int8: bool
    reason: str


@dataclass(frozen=True)
class Audit:
    """What is known of a lowered program.

    others: what multiplies and is no layer, all of it in float; total_macs: of everything, for one image, None if that
    of an operator is unknown; int8_mac_share: None if that is so, or if the code and the graph cannot be matched.
    """

    layers: list[LayerAudit]
    others: list[Operation]
    between: list[ElementwiseAudit]
    kernels: dict[str, int]
    total_macs: int | None
    int8_mac_share: float | None
    problem: str

    def as_record(self) -> dict[str, Any]:
        """As plain values, for a record."""
        return asdict(self)

    @property
    def int8_weight_mac_share(self) -> float | None:
        """The share of MACs done by kernels that multiply floats by int8 weights; None if the total is unknown."""
        done = sum(layer.macs for layer in self.layers if WEIGHT_ONLY_KERNEL in (layer.kernel or ""))
        return done / self.total_macs if self.total_macs else None

    def float_layers(self) -> list[str]:
        """Names of the layers that compute in float, the costliest first."""
        return [layer.name for layer in sorted(self.layers, key=lambda entry: -entry.macs) if not layer.int8]


@dataclass(frozen=True)
class GraphLayer:
    """A layer as the graph means it."""

    name: str
    operator: str
    macs: int
    scale: str | None
    reason: str
    int8_weight: str | None = None  # of a layer that has int8 weights alone, the weight's name


def audit(program: ExportedProgram, code: GeneratedCode, network: NetworkMacs | None = None) -> Audit:
    """Match the program's layers with the kernels that an artifact's generated code calls.

    network: what the FP32 network does, where that is known: the share is of the larger of the two totals. A layer in
    int8 is known in the code by the name of its weight's scale; where the code does not show it, and for float layers,
    by its multiply-accumulates.
    """
    meant = _meant(program)
    calls = list(code.calls)
    found: list[LayerAudit] = []
    for layer in meant:
        call = _take(calls, layer)
        int8 = call is not None and call.integer
        reason = layer.reason if layer.scale is None else "" if int8 else NOT_FOUND
        found.append(
            LayerAudit(
                layer.name,
                layer.operator,
                layer.macs,
                layer.scale is not None,
                int8,
                call.kernel if call else None,
                reason,
            )
        )
    done = operations(program)
    total, unknown = total_macs(done, network)
    share, problem = _share(found, calls, code, total)
    if any(layer.int8_weight for layer in meant):
        problem = ""  # its arithmetic is to be in floats
    if unknown:
        beyond = f"the arithmetic of {', '.join(unknown)} is not known, so neither is the share"
        problem = f"{problem}; {beyond}" if problem else beyond
    others = [operation for operation in done if not operation.layer]
    return Audit(found, others, _between(program.graph), kernel_counts(code), total, share, problem)


def total_macs(done: list[Operation], network: NetworkMacs | None = None) -> tuple[int | None, list[str]]:
    """MACs of a graph's operations, or of the network if those are more; None with what makes them unknown."""
    unknown = [f"{operation.operator} ({operation.name})" for operation in done if operation.macs is None]
    unknown += network.unknown if network is not None else []
    if unknown:
        return None, list(dict.fromkeys(unknown))
    own = sum(operation.macs or 0 for operation in done)
    return max(own, network.total or 0) if network is not None else own, []


def _take(calls: list[KernelCall], layer: GraphLayer) -> KernelCall | None:
    """The call for a layer, removed from `calls`: integer kernels for layers meant so, then whatever fits."""
    wanted = layer.scale is not None
    by_weight = [call for call in calls if layer.int8_weight is not None and call.weight == layer.int8_weight]
    by_scale = [call for call in calls if wanted and call.integer and call.weight_scale == layer.scale]
    by_size = [
        call
        for call in calls
        if call.integer == wanted and call.macs == layer.macs and (call.weight_scale is None or not wanted)
    ]
    floating = [call for call in calls if wanted and not call.integer and call.macs == layer.macs]
    for candidates in (by_weight, by_scale, by_size, floating):
        if candidates:
            calls.remove(candidates[0])
            return candidates[0]
    return None


def _share(
    found: list[LayerAudit], left: list[KernelCall], code: GeneratedCode, total: int | None
) -> tuple[float | None, str]:
    """The share of MACs in int8, and what does not fit together."""
    floats = [call for call in left if not call.integer]  # matrix products that are no layer, as in attention
    expected, matched = sum(layer.annotated for layer in found), sum(layer.int8 for layer in found)
    integer = sum(call.integer for call in code.calls)
    spare = [call.kernel for call in left if call.integer]
    if spare:
        return None, f"the generated code calls {len(spare)} integer kernels that belong to no layer of the graph"
    problem = ""
    if expected and integer == 0:
        problem = f"the generated code calls no integer kernel; the graph has {expected} int8 layers"
    elif matched < expected:
        problem = f"the generated code calls an integer kernel for {matched} of the graph's {expected} int8 layers"
    elif found and not expected:
        problem = f"none of the graph's {len(found)} layers is quantized"
    if floats:
        beyond = f"{len(floats)} float kernels belong to no layer"
        problem = f"{problem}; {beyond}" if problem else beyond
    return (sum(layer.macs for layer in found if layer.int8) / total if total else None), problem


def graph_share(program: ExportedProgram, network: NetworkMacs | None = None) -> float | None:
    """The share of MACs that the program means to be int8; None if it has arithmetic that is not known."""
    total, _ = total_macs(operations(program), network)
    annotated = sum(layer.macs for layer in audit_graph(program) if layer.annotated)
    return None if total is None else annotated / total if total else 0.0


def float_weight_share(program: ExportedProgram, chosen: Collection[str] = ()) -> float | None:
    """Of the numbers in the program's matrices and kernels, the share that are floats; None if it has none.

    chosen: names of layers that are left in float on purpose, which do not count.
    """
    tensors = {**program.state_dict, **program.constants}
    sizes = {False: 0, True: 0}
    for tensor in tensors.values():
        if isinstance(tensor, torch.Tensor) and tensor.ndim > 1:
            sizes[tensor.is_floating_point()] += tensor.numel()
    for node, layer in layers(program.graph):
        weight = _operands(node)[1]
        if layer.name in chosen and isinstance(weight, fx.Node) and _dequantize_node(weight) is None:
            sizes[True] -= weight.meta["val"].numel()
    total = sum(sizes.values())
    return max(0, sizes[True]) / total if total > 0 else None


def audit_graph(program: ExportedProgram) -> list[LayerAudit]:
    """Each convolution and linear layer of a program with what its operands say; no kernel is known yet."""
    return [
        LayerAudit(layer.name, layer.operator, layer.macs, layer.scale is not None, False, None, layer.reason)
        for layer in _meant(program)
    ]


def kernel_counts(code: GeneratedCode) -> dict[str, int]:
    """How often each convolution or matrix kernel is called."""
    return dict(sorted(Counter(call.kernel for call in code.calls).items()))


def _meant(program: ExportedProgram) -> list[GraphLayer]:
    signature = program.graph_signature
    names = {**signature.inputs_to_buffers, **signature.inputs_to_lifted_tensor_constants}
    found = []
    for node, layer in layers(program.graph):
        data, weight = _operands(node)
        weight_source, data_source = _dequantize_node(weight), _dequantize_node(data)
        scale, reason = None, ""
        if getattr(node.target, "overloadpacket", None) is WEIGHT_ONLY:
            assert isinstance(weight, fx.Node)
            own = names.get(weight.name, weight.name)
            found.append(GraphLayer(layer.name, layer.operator, layer.macs, None, INT8_WEIGHTS, own))
            continue
        if weight_source is None or _dtype_of(weight_source) is not torch.int8:
            reason = "weights are float: the quantizer has no pattern for it, or left it out"
        elif data_source is None or _dtype_of(data_source) not in (torch.uint8, torch.int8):
            reason = f"its input is float: it comes from {_origin(data)}"
        else:
            scale = names.get(str(weight_source.args[1]), str(weight_source.args[1]))
        found.append(GraphLayer(layer.name, layer.operator, layer.macs, scale, reason))
    return found


def _between(graph: fx.Graph) -> list[ElementwiseAudit]:
    found = []
    for node in graph.nodes:
        operator = BETWEEN.get(str(getattr(node.target, "overloadpacket", "")).rpartition(".")[2])
        if operator is None or node.op != "call_function":
            continue
        listed = node.args[0] if operator == "concat" else node.args[: 2 if operator == "add" else 1]
        inputs = [value for value in listed if isinstance(value, fx.Node)]
        floats = [value for value in inputs if _dequantize_node(value) is None]
        if not inputs or any(not value.meta["val"].is_floating_point() for value in inputs):
            continue
        reason = f"reads float from {_origin(floats[0])}" if floats else ""
        found.append(ElementwiseAudit(layer_name(node), operator, not floats, reason))
    return found


def _operands(node: fx.Node) -> tuple[Any, Any]:
    """The data and weight arguments of a convolution or linear node."""
    matmul = getattr(node.target, "overloadpacket", None) is torch.ops.aten.addmm
    return (node.args[1], node.args[2]) if matmul else (node.args[0], node.args[1])


def _source(value: Any) -> Any:
    """The node behind views and the like."""
    while isinstance(value, fx.Node) and str(getattr(value.target, "overloadpacket", "")).rpartition(".")[2] in VIEWS:
        value = value.args[0]
    return value


def _dequantize_node(value: Any) -> fx.Node | None:
    """The dequantize node that a value comes from, views looked through; None for anything else."""
    value = _source(value)
    return value if isinstance(value, fx.Node) and "dequantize_per_" in str(value.target) else None


def _dtype_of(dequantize: fx.Node) -> torch.dtype:
    source = dequantize.args[0]
    assert isinstance(source, fx.Node)
    dtype: torch.dtype = source.meta["val"].dtype
    return dtype


def _origin(value: Any) -> str:
    """What computed a value, in the words of its operator and module."""
    value = _source(value)
    if not isinstance(value, fx.Node):
        return "a constant"
    operator = str(getattr(value.target, "overloadpacket", value.target)).rpartition(".")[2]
    name = layer_name(value)
    return operator if name == value.name else f"{operator} ({name})"
