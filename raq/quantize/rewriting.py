"""Writing layers of an exported graph anew with int8 weights, for modes that no calibration precedes."""

from collections.abc import Iterator
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from raq.model.inputs import Example
from raq.quantize.convert import drop_unused_tensors
from raq.quantize.export import export_program

aten = torch.ops.aten
SMALLEST_SCALE = 2**-24  # of a channel whose weights are all zero


def rounded(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 [N, K] and scales [N] of a weight [N, K]: symmetric, -127 to 127, a scale for each row."""
    weight = weight.to(torch.float32)
    scale = (weight.abs().amax(dim=1) / 127).clamp(min=SMALLEST_SCALE)
    return (weight / scale[:, None]).round().clamp(-127, 127).to(torch.int8), scale


class Writer:
    """Writes nodes in place of one, each known by the module that that came from."""

    def __init__(self, graph: fx.Graph, node: fx.Node) -> None:
        self.graph, self.node = graph, node

    def call(self, target: Any, *given: Any) -> fx.Node:
        """A node that calls an operator."""
        new = self.graph.call_function(target, given)
        new.meta = {key: value for key, value in self.node.meta.items() if key != "val"}
        return new


def layers_with_weights(graph: fx.GraphModule, operators: tuple[Any, ...]) -> Iterator[tuple[fx.Node, fx.Node]]:
    """The linear layers and embeddings of these overloads whose weight is stored: node, and weight's node.

    A weight that anything else reads or writes (an embedding's max_norm does) is left as it is.
    """
    for node in list(graph.graph.nodes):
        if node.target in operators:
            weight = node.args[0 if node.target is aten.embedding.default else 1]
            if isinstance(weight, fx.Node) and weight.op == "get_attr" and _is_read_by_layers_alone(graph, weight):
                yield node, weight


def _is_read_by_layers_alone(graph: fx.GraphModule, weight: fx.Node) -> bool:
    same = [node for node in graph.graph.nodes if node.op == "get_attr" and node.target == weight.target]
    return all(user.target in (aten.linear.default, aten.embedding.default) for node in same for user in node.users)


def replace(graph: fx.GraphModule, node: fx.Node, new: fx.Node) -> None:
    """Let `new` stand for `node`, whose shape and type it has."""
    new.meta["val"] = node.meta["val"]
    node.replace_all_uses_with(new)
    graph.graph.erase_node(node)


def export_rewritten(graph: fx.GraphModule, example: Tensor | Example) -> ExportedProgram:
    """The program of a graph that was written anew, without the weights that nothing reads any more."""
    graph.graph.eliminate_dead_code()
    graph.graph.lint()
    graph.recompile()
    drop_unused_tensors(graph)
    for parameter in graph.parameters():
        parameter.requires_grad_(False)
    return export_program(graph, example)


def tensor_of(graph: fx.GraphModule, weight: fx.Node) -> Tensor:
    """The tensor that a node reads."""
    owner, _, leaf = str(weight.target).rpartition(".")
    found = getattr(graph.get_submodule(owner), leaf)
    assert isinstance(found, Tensor)
    return found.detach()


def put_tensor(graph: fx.GraphModule, read: fx.Node, tensor: Tensor) -> None:
    """Let a node read another tensor; what the graph was exported from keeps its own."""
    put_named(graph, str(read.target), tensor)


def put_named(graph: fx.GraphModule, name: str, tensor: Tensor) -> None:
    """Put another tensor in place of the parameter or buffer of this name."""
    owner, _, leaf = name.rpartition(".")
    holder = graph.get_submodule(owner)
    if isinstance(getattr(holder, leaf), torch.nn.Parameter):
        setattr(holder, leaf, torch.nn.Parameter(tensor, requires_grad=False))
    else:
        holder.register_buffer(leaf, tensor)


def store(graph: fx.GraphModule, weight: fx.Node, form: str, tensors: dict[str, Tensor]) -> list[fx.Node]:
    """Nodes that read these tensors, stored under the weight's name and form; a shared weight is stored once."""
    nodes = []
    for kind, tensor in tensors.items():
        known = blake2b(str(weight.target).encode(), digest_size=4).hexdigest()  # a.b_c and a_b.c are two
        name = f"{weight.target}_{known}_{form}_{kind}".replace(".", "_")
        if name not in graph._buffers:
            graph.register_buffer(name, tensor)
        nodes.append(graph.graph.get_attr(name))
    return nodes


def int8_embedding(write: Writer, graph: fx.GraphModule, weight: fx.Node) -> fx.Node:
    """Rows of int8 weight [N, E], each times its scale [N, 1]: [..., E] of the weight's type."""
    own_type = tensor_of(graph, weight).dtype
    integers, scales = rounded(tensor_of(graph, weight))
    own, scale = store(graph, weight, "embedding", {"int8": integers, "scale": scales[:, None]})
    indices = write.node.args[1]
    rows = write.call(aten.to.dtype, write.call(aten.embedding.default, own, indices), torch.float32)
    found = write.call(aten.mul.Tensor, rows, write.call(aten.embedding.default, scale, indices))
    return found if own_type is torch.float32 else write.call(aten.to.dtype, found, own_type)
