"""Dynamic quantization of linear layers: int8 weights, activations rounded to the range of the batch at hand.

Embeddings look int8 rows up, each with a scale of its own.

The range of an activation is found anew at every call, over the whole tensor, as torch's quantized_decomposed operators
write it and oneDNN's int8 kernels take it. An answer depends a little on the batch that it comes in. torchao's
quantizer writes the same for single layers and fails where several read one input, as attention does (0.18).
"""

import operator

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from raq.errors import StageError
from raq.model.inputs import Example
from raq.quantize import rewriting
from raq.quantize.export import graph_of
from raq.quantize.rewriting import Writer, aten, int8_embedding, rounded

SMALLEST_STEP = torch.finfo(torch.float32).eps  # of an activation's integers


def dynamic_program(network: nn.Module, example: Tensor | Example, *, reduce_range: bool) -> ExportedProgram:
    """The network with int8 linear layers and embeddings; convolutions and all else are as they were.

    reduce_range: activations of 7 bits, for CPUs whose int8 kernels could saturate. Raises UserError if it cannot be
    exported, StageError if it has no linear layer.
    """
    import torchao.quantization.pt2e.quantize_pt2e  # noqa: F401  registers the operators

    graph, bounds = graph_of(network.eval(), example), (0, 127 if reduce_range else 255)
    rounded_inputs: dict[fx.Node, tuple[fx.Node, fx.Node, fx.Node]] = {}
    count = 0
    for node, weight in rewriting.layers_with_weights(graph, (aten.linear.default, aten.embedding.default)):
        write = Writer(graph.graph, node)
        with graph.graph.inserting_before(node):
            if node.target is aten.embedding.default:
                new = int8_embedding(write, graph, weight)
            else:
                new, count = _int8_linear(write, graph, weight, bounds, rounded_inputs), count + 1
        rewriting.replace(graph, node, new)
    if not count:
        raise StageError(
            "dynamic quantizes linear layers, and the network has none whose weight is stored as such",
            "leave dynamic out of ptq.mode",
        )
    return rewriting.export_rewritten(graph, example)


def _int8_linear(
    write: Writer,
    graph: fx.GraphModule,
    weight: fx.Node,
    bounds: tuple[int, int],
    rounded_inputs: dict[fx.Node, tuple[fx.Node, fx.Node, fx.Node]],
) -> fx.Node:
    """A linear layer of a rounded input and a rounded weight; layers that read one input share its rounding."""
    operators, data = torch.ops.quantized_decomposed, write.node.args[0]
    assert isinstance(data, fx.Node)
    own_type = data.meta["val"].dtype
    wide = own_type is torch.float32
    if data not in rounded_inputs:
        given = data if wide else write.call(aten.to.dtype, data, torch.float32)
        chosen = write.call(operators.choose_qparams.tensor, given, *bounds, SMALLEST_STEP, torch.uint8)
        scale, zero_point = write.call(operator.getitem, chosen, 0), write.call(operator.getitem, chosen, 1)
        integers = write.call(operators.quantize_per_tensor.tensor, given, scale, zero_point, *bounds, torch.uint8)
        rounded_inputs[data] = (integers, scale, zero_point)
    integers, scale, zero_point = rounded_inputs[data]
    values = write.call(operators.dequantize_per_tensor.tensor, integers, scale, zero_point, *bounds, torch.uint8)
    own, scales = rounded(rewriting.tensor_of(graph, weight))
    zeros = torch.zeros(len(own), dtype=torch.int64)
    stored = rewriting.store(graph, weight, "dynamic", {"int8": own, "scale": scales, "zero": zeros})
    weights = write.call(operators.dequantize_per_channel.default, *stored, 0, -128, 127, torch.int8)
    if wide:
        return write.call(aten.linear.default, values, weights, *write.node.args[2:3])
    found = write.call(aten.to.dtype, write.call(aten.linear.default, values, weights), own_type)
    bias = write.node.args[2:3]
    return write.call(aten.add.Tensor, found, *bias) if bias and bias[0] is not None else found
