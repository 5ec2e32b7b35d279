"""Convolutions of one channel, given a second one of zeros.

torch 2.14.1 compiles a convolution of one channel (grey images, single signals) to something else than its graph: in
int8 everywhere, and in float where its weights are frozen and its input is another layer's. A tensor with one channel
has its numbers in the same order whichever axis is last, and kernel and data disagree on which it is (results/log.md).
With a channel of zeros beside it, and zeros for weights, the sum is the same.
"""

from typing import Any

import torch
from torch import Tensor, fx, nn

aten = torch.ops.aten
CONVOLUTIONS = (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)
GROUPS = 6  # position in a convolution's arguments


def with_second_channel(module: fx.GraphModule) -> int:
    """Widen the convolutions of one channel of an exported graph, in place; those whose weight is computed stay.

    How many there were.
    """
    count = 0
    for node in list(module.graph.nodes):
        if node.target not in CONVOLUTIONS or (len(node.args) > GROUPS and node.args[GROUPS] != 1):
            continue
        data, weight = node.args[:2]
        known = isinstance(weight, fx.Node) and weight.op == "get_attr" and len(weight.users) == 1
        if known and isinstance(data, fx.Node) and data.meta["val"].shape[1] == 1:
            _widen(module, weight)
            node.replace_input_with(data, _padded(node, data))
            count += 1
    if count:
        module.recompile()
    return count


def _padded(before: fx.Node, data: fx.Node) -> fx.Node:
    """The data [n, 1, ...] as [n, 2, ...]."""
    value: Any = data.meta["val"]
    ends = [0, 0] * (value.ndim - 2) + [0, 1]
    with before.graph.inserting_before(before):
        padded = before.graph.call_function(aten.constant_pad_nd.default, (data, ends, 0.0))
    padded.meta = {"val": nn.functional.pad(value, ends)}
    return padded


def _widen(module: fx.GraphModule, weight: fx.Node) -> None:
    """The weight [O, 1, ...] as [O, 2, ...]."""
    owner, _, leaf = str(weight.target).rpartition(".")
    holder = module.get_submodule(owner)
    old: Tensor = getattr(holder, leaf)
    wide = torch.cat([old.detach(), torch.zeros_like(old)], 1)
    setattr(holder, leaf, nn.Parameter(wide, requires_grad=old.requires_grad))
    if "val" in weight.meta:
        shape = weight.meta["val"]
        weight.meta = {**weight.meta, "val": torch.cat([shape, shape], 1)}
