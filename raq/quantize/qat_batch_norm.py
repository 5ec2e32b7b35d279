"""Batch normalisation in a QAT graph: what torchao's rewrite loses is put back, and folding into weights is done here.

prepare_qat_pt2e rewrites convolution -> batch norm so that the fake quantizer sees the weight as it will be deployed:
conv(x, fake_quantize(w * s)) / s + b, then batch norm, with s = gamma / sqrt(running_var + eps) (Krishnamoorthi 2018,
Quantizing deep convolutional networks, section 3.2.2). torchao 0.18 writes eps 1e-5 and momentum 0.1 into every one of
them, and folds with eps 1e-5 at convert, whatever the model has (pytorch/ao#4107, #2980, #4790); and it divides by zero
where gamma is 0. Both are mended here, on the graph, before anything is trained.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from raq.quantize.export import is_layer

aten = torch.ops.aten
# positions in aten.batch_norm's arguments
WEIGHT, BIAS, RUNNING_MEAN, RUNNING_VAR, TRAINING, MOMENTUM, EPS = 1, 2, 3, 4, 5, 6, 7
TORCHAO_EPS = 1e-5
FIXED = "raq_fixed"
"""In a node's meta: it is the same in training and in evaluation, so switching modes leaves it alone."""
COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class BatchNormConstants:
    """What a batch normalisation of the user's network computes with.

    momentum None: the mean over all batches; frozen: in training, too, it uses its running statistics and leaves them.
    """

    eps: float
    momentum: float | None
    frozen: bool = False


def batch_norm_constants(graph: fx.Graph, cumulative: frozenset[str]) -> dict[str, BatchNormConstants]:
    """The constants of every batch norm of an exported graph that keeps running statistics, by the mean's name.

    cumulative: names of modules whose momentum is None, which cannot be exported as that.
    """
    found: dict[str, BatchNormConstants] = {}
    for node in batch_norms(graph):
        mean = node.args[RUNNING_MEAN]
        if isinstance(mean, fx.Node):
            name = str(mean.target)
            averaged = name.rpartition(".")[0] in cumulative
            momentum = None if averaged else float(node.args[MOMENTUM])  # type: ignore[arg-type]
            frozen = node.args[TRAINING] is False
            found[name] = BatchNormConstants(float(node.args[EPS]), momentum, frozen)  # type: ignore[arg-type]
    return found


def batch_norms(graph: fx.Graph) -> list[fx.Node]:
    """The batch-norm nodes of a graph."""
    return [node for node in graph.nodes if getattr(node.target, "overloadpacket", None) is aten.batch_norm]


def restore_batch_norms(prepared: fx.GraphModule, constants: dict[str, BatchNormConstants]) -> None:
    """Give every batch norm of a prepared graph its own eps and momentum, and make a gamma of 0 harmless; in place.

    A channel whose gamma is 0 has a constant output; its weights are scaled as with a gamma of 1 instead.
    """
    graph = prepared.graph
    for node in batch_norms(graph):
        mean, variance = node.args[RUNNING_MEAN], node.args[RUNNING_VAR]
        if not isinstance(mean, fx.Node) or not isinstance(variance, fx.Node):
            continue
        own = constants.get(str(mean.target))
        if own is None:
            continue
        node.meta[FIXED] = own.frozen
        node.update_arg(EPS, own.eps)
        if own.momentum is not None:
            node.update_arg(MOMENTUM, own.momentum)
        else:
            _average_over_all_batches(graph, node, mean)
        for user in list(variance.users):
            if (
                user.target is aten.add.Tensor
                and user.args[1] == TORCHAO_EPS
                and any(root.target is aten.sqrt.default for root in user.users)
            ):
                user.update_arg(1, own.eps)
    for node in list(graph.nodes):
        if node.target is aten.div.Tensor and _is_running_std(node.args[1]):
            with graph.inserting_before(node):
                dead = graph.call_function(aten.eq.Scalar, (node.args[0], 0))
                safe = graph.call_function(aten.masked_fill.Scalar, (node.args[0], dead, 1.0))
            node.update_arg(0, safe)
    prepared.recompile()


def _average_over_all_batches(graph: fx.Graph, node: fx.Node, mean: fx.Node) -> None:
    """Momentum None: one over the number of batches seen, which the graph counts before this node."""
    name = f"{str(mean.target).rpartition('.')[0]}.{COUNTER}"
    with graph.inserting_before(node):
        counter = graph.get_attr(name)
        rate = graph.call_function(aten.reciprocal.default, (counter,))
        node.update_arg(MOMENTUM, graph.call_function(aten.item.default, (rate,)))


def _is_running_std(value: Any) -> bool:
    """Whether a node is sqrt(running_var + eps)."""
    if not isinstance(value, fx.Node) or value.target is not aten.sqrt.default:
        return False
    total = value.args[0]
    source = total.args[0] if isinstance(total, fx.Node) and total.target is aten.add.Tensor else None
    return isinstance(source, fx.Node) and source.op == "get_attr" and str(source.target).endswith("running_var")


def fold_scaled_convolutions(prepared: fx.GraphModule) -> None:
    """Replace conv(x, fake_quantize(w * s)) / s + b -> batch norm by conv(x, fake_quantize(w * s), b'); in place.

    The graph is in evaluation mode: running statistics. b' = (b - mean) * s + beta. Batch norms that were not rewritten
    (behind something else than a convolution, or without gamma) stay as they are.
    """
    graph = prepared.graph
    for number, node in enumerate(batch_norms(graph)):
        _literal_momentum(node)
        found = _scaled_convolution(node)
        if found is None:
            continue
        conv, scaled, bias = found
        statistics = (_tensor(prepared, node.args[at]) for at in (WEIGHT, BIAS, RUNNING_MEAN, RUNNING_VAR))
        gamma, beta, mean, variance = statistics
        weight_node, shape, eps = scaled.args[0], scaled.args[1].args[1], node.args[EPS]  # type: ignore[union-attr]
        scale = (gamma.double() / torch.sqrt(variance.double() + eps)).to(gamma.dtype)  # type: ignore[operator]
        shift = (0 if bias is None else _tensor(prepared, bias)) - mean
        folded = {
            f"{weight_node.target}_folded_{number}": _tensor(prepared, weight_node) * scale.reshape(shape),  # type: ignore[union-attr, arg-type]
            _free_name(prepared, f"{weight_node.target}_bias", number): shift * scale + beta,  # type: ignore[union-attr]
        }
        names = [_register(prepared, name, tensor) for name, tensor in folded.items()]
        with graph.inserting_before(scaled):
            new_weight = graph.get_attr(names[0])
            new_weight.meta = dict(scaled.meta)
        scaled.replace_all_uses_with(new_weight)
        with graph.inserting_before(conv):
            new_bias = graph.get_attr(names[1])
        conv.args = (*conv.args[:2], new_bias, *conv.args[3:])
        conv.meta = {**conv.meta, "val": node.meta["val"]} if "val" in node.meta else conv.meta
        node.replace_all_uses_with(conv)
    for counting in reversed(counts(graph)):  # deployed, nothing counts batches; a later count may read an earlier one
        counting.replace_all_uses_with(counting.args[0])  # type: ignore[arg-type]
        graph.erase_node(counting)
    graph.eliminate_dead_code()
    prepared.recompile()


def counts(graph: fx.Graph) -> list[fx.Node]:
    """The nodes that count the batches that a batch norm has seen (num_batches_tracked += 1)."""
    return [node for node in graph.nodes if node.target is aten.add_.Tensor and _is_counter(node.args[0])]


def _is_counter(value: Any) -> bool:
    """Whether a node reads a counter of batches, or has just counted there."""
    while _is(value, aten.add_.Tensor):
        value = value.args[0]
    return isinstance(value, fx.Node) and value.op == "get_attr" and str(value.target).endswith(COUNTER)


def _literal_momentum(node: fx.Node) -> None:
    """In evaluation mode the momentum has no effect, and an exported graph cannot compute it."""
    if isinstance(node.args[MOMENTUM], fx.Node):
        node.update_arg(MOMENTUM, 0.0)


def _scaled_convolution(node: fx.Node) -> tuple[fx.Node, fx.Node, fx.Node | None] | None:
    """Of a batch norm that torchao has rewritten: its convolution, the scaled weight w * s, and the bias's tensor.

    None for one that was not.
    """
    value, bias = node.args[0], None
    if _is(value, aten.add.Tensor) and _is(value.args[1], aten.reshape.default):  # type: ignore[union-attr]
        bias = value.args[1].args[0]  # type: ignore[union-attr]
        value = value.args[0]  # type: ignore[union-attr]
    read = (node.args[at] for at in (WEIGHT, BIAS, RUNNING_MEAN, RUNNING_VAR))
    if not _is(value, aten.div.Tensor) or any(not isinstance(n, fx.Node) or n.op != "get_attr" for n in read):
        return None
    conv, divisor = value.args[:2]  # type: ignore[union-attr]
    if not (isinstance(conv, fx.Node) and is_layer(conv) and _is(divisor, aten.reshape.default)):
        return None
    scaled = conv.args[1]
    if isinstance(scaled, fx.Node) and scaled.op == "call_module":  # its fake quantizer
        scaled = scaled.args[0]
    if not _is(scaled, aten.mul.Tensor) or scaled.args[1].args[0] is not divisor.args[0]:  # type: ignore[union-attr]
        return None
    return conv, scaled, bias  # type: ignore[return-value]


def _is(value: Any, target: Any) -> bool:
    return isinstance(value, fx.Node) and value.target is target


def _tensor(module: fx.GraphModule, node: Any) -> Tensor:
    """The parameter or buffer that a node reads, without its gradient."""
    owner, _, name = str(node.target).rpartition(".")
    tensor: Tensor = getattr(module.get_submodule(owner), name)
    return tensor.detach()


def _free_name(module: fx.GraphModule, name: str, number: int) -> str:
    """The name, by which an audit knows the module of a bias; with a number if it is taken."""
    owner, _, leaf = name.rpartition(".")
    return f"{name}_{number}" if hasattr(module.get_submodule(owner), leaf) else name


def _register(module: fx.GraphModule, name: str, tensor: Tensor) -> str:
    owner, _, leaf = name.rpartition(".")
    module.get_submodule(owner).register_parameter(leaf, nn.Parameter(tensor, requires_grad=False))
    return name
