"""A quantizer for the int8 kernels of GPUs: symmetric activations, and what a kernel can compute after its sums.

torchao has none for CUDA. A convolution or linear layer reads int8; batch norm (of training), the addition of a
shortcut and ReLU right after it belong to its kernel, which rounds what it stores if another layer reads that. A
shortcut is added in int8. Max pooling keeps the integers. Everything else is float.
"""

from typing import Any

import torch
from torch import Tensor, fx
from torchao.quantization.pt2e.quantizer import (
    QuantizationAnnotation,
    QuantizationSpec,
    Quantizer,
    SharedQuantizationSpec,
)
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

aten = torch.ops.aten
LAYERS = (aten.conv2d.default, aten.linear.default)
NORMS = (aten.batch_norm.default,)
ADDITIONS = (aten.add.Tensor, aten.add_.Tensor)
PLAIN_RELUS, RELUS6 = (aten.relu.default, aten.relu_.default), (aten.relu6.default, aten.relu6_.default)
RELUS = (*PLAIN_RELUS, *RELUS6, aten.hardtanh.default, aten.hardtanh_.default)
POOLS = (aten.max_pool2d.default,)


class CudaQuantizer(Quantizer):
    """Annotates layers with what their kernels read and store. activations, weights: how those are rounded."""

    def __init__(self, activations: QuantizationSpec, weights: QuantizationSpec) -> None:
        super().__init__()
        self.activations, self.weights = activations, weights

    def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
        """Annotate every layer and what its kernel computes after it."""
        chains = kernels_of(model.graph)
        for layer, *after in chains:
            data, weight = layer.args[:2]
            _mark(layer, {data: self.activations, weight: self.weights})
            for before, node in zip((layer, *after), after, strict=False):
                adds = node.target in ADDITIONS
                _mark(node, {shortcut_of(node, before): self.activations} if adds else {})
        for node in model.graph.nodes:
            if node.target in POOLS:
                _mark(node, {node.args[0]: self.activations}, SharedQuantizationSpec((node.args[0], node)))
        for chain in chains:
            reads = [user.meta.get(Q_ANNOTATION_KEY) for user in chain[-1].users]
            if any(read is not None and chain[-1] in read.input_qspec_map for read in reads):
                chain[-1].meta[Q_ANNOTATION_KEY].output_qspec = self.activations
        return model

    def validate(self, model: fx.GraphModule) -> None:
        """Nothing to refuse: what is not annotated stays in float, and the audit counts it."""


def _mark(node: fx.Node, reads: dict[Any, Any], output: Any = None) -> None:
    node.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(input_qspec_map=reads, output_qspec=output, _annotated=True)


def kernels_of(graph: fx.Graph) -> list[list[fx.Node]]:
    """By layer, from the last: the layer, and the nodes after it that its kernel computes.

    Of two layers whose results are added, the kernel of the later one adds.
    """
    found: list[list[fx.Node]] = []
    added: set[fx.Node] = set()
    for layer in reversed([node for node in graph.nodes if node.target in LAYERS]):
        chain = [layer]
        for kind in (NORMS, ADDITIONS, RELUS):
            node = next(iter(chain[-1].users), None)
            if node is None or len(chain[-1].users) > 1 or node.target not in kind:
                continue
            if kind is RELUS and bounds_of(node)[0] != 0:
                continue
            if kind is ADDITIONS:
                if node in added or not _can_add(node, chain):
                    continue
                added.add(node)
            chain.append(node)
        found.append(chain)
    return found


def _can_add(node: fx.Node, chain: list[fx.Node]) -> bool:
    """Whether a convolution's kernel can add what `node` adds: as it is, a value of the same shape."""
    other = shortcut_of(node, chain[-1])
    if chain[0].target is aten.linear.default or node.kwargs.get("alpha", 1) != 1 or not isinstance(other, fx.Node):
        return False
    value, own = other.meta.get("val"), chain[-1].meta.get("val")
    if not isinstance(value, Tensor) or not isinstance(own, Tensor) or other is chain[-1]:
        return False
    return value.shape == own.shape and value.dtype == own.dtype


def bounds_of(node: fx.Node) -> tuple[float, float | None]:
    """What a ReLU or hardtanh clamps to, None for no upper bound."""
    if node.target in PLAIN_RELUS:
        return 0.0, None
    if node.target in RELUS6:
        return 0.0, 6.0
    bounds: list[Any] = [*node.args[1:], *(-1.0, 1.0)[len(node.args) - 1 :]]
    return float(bounds[0]), float(bounds[1])


def shortcut_of(node: fx.Node, before: fx.Node) -> Any:
    """The other of the two values that an addition adds, a node or a number; `before`: one of them."""
    return node.args[1] if node.args[0] is before else node.args[0]
