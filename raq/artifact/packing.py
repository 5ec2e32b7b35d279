"""Weights packed once, for programs that take any batch size: passes on the graph that Inductor freezes.

oneDNN packs a convolution's weights for the shape of its input. Where that has a batch size that is not known yet,
torchao's pass leaves the shape out (`x_shape=None` of onednn.qconv_prepack) and torch's leaves float weights unpacked
("we need to pack weight in runtime", torch/_inductor/fx_passes/mkldnn_fusion.py), so that every call packs them anew:
ResNet-50 at one image of 224 pixels spends 80 of 92 ms on that. Here they are packed for the batch sizes that shapes
have as hints; oneDNN takes weights packed for one batch size at any other, and repacks where another layout is better.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx
from torch._inductor.fx_passes import freezing_patterns
from torch._inductor.fx_passes.mkldnn_fusion import _get_mkldnn_device_op
from torch.fx.experimental.symbolic_shapes import has_free_symbols


@contextmanager
def weights_packed_once(batch_size: int) -> Iterator[None]:
    """Let Inductor pack weights for this batch size meanwhile, in programs that take any."""
    if not torch._C._has_mkldnn:  # then Inductor packs nothing
        yield
        return
    own = _Packing(batch_size)
    freezing_patterns.pass_patterns.append(own)  # type: ignore[arg-type]
    try:
        yield
    finally:
        freezing_patterns.pass_patterns.remove(own)  # type: ignore[arg-type]


class _Packing:
    """As a pass of freezing: after weights were found, before constants are folded."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size

    def apply(self, graph: fx.Graph) -> int:
        """Give every packing of a convolution's or linear layer's weights a shape; how many."""
        prepacks = (torch.ops.onednn.qconv_prepack, torch.ops.onednn.qlinear_prepack)
        count = 0
        for node in [each for each in graph.nodes if each.op == "call_function"]:
            if getattr(node.target, "overloadpacket", node.target) in prepacks:
                count += self._give_shape(node)
            elif node.target == torch.ops.mkldnn._convolution_pointwise.default:
                count += self._pack(graph, node)
        return count

    def _give_shape(self, node: fx.Node) -> bool:
        """The shape of the input that a prepacked weight is for, in place of None."""
        user = next(iter(node.users))
        if node.args[-1] is not None or not isinstance(user.args[0], fx.Node):
            return False
        node.args = (*node.args[:-1], self._sizes(user.args[0].meta["val"].shape))
        return True

    def _pack(self, graph: fx.Graph, node: fx.Node) -> bool:
        """A float convolution's weight packed, where it is not."""
        images, weight, _, padding, stride, dilation, groups = node.args[:7]
        if not isinstance(weight, fx.Node) or weight.op != "get_attr" or not isinstance(images, fx.Node):
            return False
        shape = images.meta["val"].shape
        if not has_free_symbols(shape) or shape[1] == 1:  # of one channel another order is packed than is read
            return False
        with graph.inserting_before(node):
            pack: Any = _get_mkldnn_device_op("cpu").pack_conv_weight
            packed: fx.Node = pack(graph, False, weight, [padding, stride, dilation, groups], self._sizes(shape))
        node.replace_input_with(weight, packed)
        return True

    def _sizes(self, shape: Sequence[int | torch.SymInt]) -> list[int]:
        """The shape at this batch size."""
        return [size if isinstance(size, int) else self.batch_size for size in shape]
