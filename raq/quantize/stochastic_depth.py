"""Stochastic depth in QAT: kept in training, and switched like dropout, by way of marks in the exported graph.

Stochastic depth (Huang et al. 2016, Deep Networks with Stochastic Depth) drops the residual branch of whole images. Its
random draw cannot be exported in a form that can be switched off again, and between a convolution and an addition it
would keep the quantizer from seeing them as one pattern. So it is exported as a dropout that is taken out before the
quantizer looks, and put back after it as a product with the dropout of ones: one number an image, which is the same.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from raq.errors import StageError

aten = torch.ops.aten
KINDS = {"StochasticDepth": "torchvision", "DropPath": "timm"}
"""By name, whose it is: a user's own class of that name may mean its rate otherwise, and is refused as random."""


class _Mark(nn.Module):
    """Stands where stochastic depth is: a dropout of the same rate, in the exported graph."""

    def __init__(self, rate: float, by_batch: bool) -> None:
        super().__init__()
        self.rate, self.by_batch = rate, by_batch

    def forward(self, values: Tensor) -> Tensor:
        """A dropout of all values; never run, only exported."""
        return nn.functional.dropout(values, self.rate, self.training)


class _BatchMark(_Mark):
    """The whole batch is dropped or kept."""


@dataclass(frozen=True)
class Mark:
    """Where stochastic depth is: before an input of the node `consumer` (its name, as exported).

    order: which of the consumer's inputs it is; rate: share that is dropped; rank: number of
    dimensions of what is dropped.
    """

    consumer: str
    order: int
    rate: float
    by_batch: bool
    rank: int


def mark_stochastic_depth(network: nn.Module) -> nn.Module:
    """Replace torchvision's and timm's stochastic depth by marks, in place; one that drops nothing by nothing."""
    for owner in list(network.modules()):
        for name, child in list(owner.named_children()):
            if KINDS.get(type(child).__name__, "-") != type(child).__module__.partition(".")[0]:
                continue
            rate = float(getattr(child, "p", getattr(child, "drop_prob", None) or 0.0))
            if not getattr(child, "scale_by_keep", True):
                continue  # not scaled, so no dropout: its draw is refused after the export
            mark = _BatchMark if getattr(child, "mode", "row") == "batch" else _Mark
            setattr(owner, name, mark(rate, mark is _BatchMark).train(child.training) if rate else nn.Identity())
    return network


def take_out_marks(graph: fx.GraphModule) -> list[Mark]:
    """Remove the marks of an exported graph, in place; where they were."""
    found = []
    for node in list(graph.graph.nodes):
        kinds = [str(kind).rpartition(".")[2] for _, kind in (node.meta.get("nn_module_stack") or {}).values()]
        by_batch = bool(kinds) and kinds[-1] == _BatchMark.__name__
        if node.target is not aten.dropout.default or not kinds or not (by_batch or kinds[-1] == _Mark.__name__):
            continue
        rate, rank = float(node.args[1]), node.meta["val"].dim()
        found += [
            Mark(user.name, order, rate, by_batch, rank)
            for user in node.users
            for order, value in enumerate(_inputs(user))
            if value is node
        ]
        node.replace_all_uses_with(node.args[0])
        graph.graph.erase_node(node)
    graph.recompile()
    return found


def insert_stochastic_depth(prepared: fx.GraphModule, marks: list[Mark]) -> None:
    """Put stochastic depth back where the marks were, in place.

    Raises StageError if a node that one fed is gone.
    """
    graph = prepared.graph
    nodes = {node.name: node for node in graph.nodes}
    for mark in marks:
        consumer = nodes.get(mark.consumer)
        if consumer is None:
            raise StageError(
                f"stochastic depth fed the node {mark.consumer}, which the quantizer has rewritten",
                "build the model with stochastic_depth_prob=0, or leave QAT out with qat: null",
            )
        source = _inputs(consumer)[mark.order]
        with graph.inserting_before(consumer):
            count = 1 if mark.by_batch else graph.call_function(aten.sym_size.int, (source, 0))
            ones = graph.call_function(aten.new_ones.default, (source, [count] + [1] * (mark.rank - 1)))
            kept = graph.call_function(aten.dropout.default, (ones, mark.rate, True))
            dropped = graph.call_function(aten.mul.Tensor, (source, kept))
        _replace_input(consumer, mark.order, dropped)
    prepared.recompile()


def _inputs(node: fx.Node) -> list[fx.Node]:
    """All nodes that a node reads, in order, those in lists and keywords too; one for each time."""
    found: list[fx.Node] = []
    fx.node.map_arg((node.args, node.kwargs), found.append)
    return found


def _replace_input(node: fx.Node, order: int, new: fx.Node) -> None:
    """Let a node read another one in place of its input of this order."""
    count = iter(range(len(_inputs(node))))
    node.args, node.kwargs = fx.node.map_arg((node.args, node.kwargs), lambda old: new if next(count) == order else old)


def remove_stochastic_depth(graph: fx.Graph) -> None:
    """Take out what `insert_stochastic_depth` has put in, in place: deployed, nothing is dropped."""
    for node in list(graph.nodes):
        kept = node.args[1] if node.target is aten.mul.Tensor and len(node.args) > 1 else None
        if isinstance(kept, fx.Node) and kept.target is aten.dropout.default and _is_ones(kept.args[0]):
            ones = kept.args[0]
            node.replace_all_uses_with(node.args[0])
            for unused in (node, kept, ones):  # a dropout counts as random, so it is not removed as dead code
                graph.erase_node(unused)  # type: ignore[arg-type]
    graph.eliminate_dead_code()


def _is_ones(value: Any) -> bool:
    return isinstance(value, fx.Node) and value.target is aten.new_ones.default
