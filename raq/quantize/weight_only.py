"""Quantization of weights alone: linear layers read int8 and multiply in bfloat16, embeddings look int8 rows up.

For networks whose time goes into reading weights: large layers, few samples a call. Weights are rounded symmetrically,
with one scale for each output channel of a linear layer and one for each row of an embedding (Zafrir et al. 2019,
Q8BERT, section 3). `aten._weight_int8pack_mm` is torch's own kernel; with float32 activations it is many times slower
than a float32 product, so it is given bfloat16.
"""

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from raq.errors import StageError
from raq.model.inputs import Example
from raq.quantize import rewriting
from raq.quantize.export import export_network
from raq.quantize.rewriting import Writer, aten, int8_embedding, rounded

MULTIPLE = 32  # of a row's length: else the kernel reads beyond it, wrong numbers or a crash (torch 2.14.1)
FEWEST_OUTPUTS = 9  # Inductor writes fewer numbers into its code, where the kernel's lowering wants a tensor (2.14.1)


def weight_only_program(network: nn.Module, example: Tensor | Example) -> ExportedProgram:
    """The network with int8 weights where linear layers and embeddings have float ones; all else is as it was.

    Raises UserError if it cannot be exported, StageError if it has neither linear layers nor embeddings.
    """
    graph = export_network(network.eval(), example).module()
    graph.graph.eliminate_dead_code()
    count = 0
    for node, weight in rewriting.layers_with_weights(graph, (aten.linear.default, aten.embedding.default)):
        linear = node.target is aten.linear.default
        if linear and weight.meta["val"].shape[0] < FEWEST_OUTPUTS:
            continue  # it has hardly any weights
        with graph.graph.inserting_before(node):
            new = (_int8_linear if linear else int8_embedding)(Writer(graph.graph, node), graph, weight)
        rewriting.replace(graph, node, new)
        count += 1
    if not count:
        raise StageError(
            f"weight-only quantizes embeddings, and linear layers of at least {FEWEST_OUTPUTS} outputs: the network "
            "has none whose weight is stored as such",
            "leave weight-only out of ptq.mode",
        )
    return rewriting.export_rewritten(graph, example)


def _int8_linear(write: Writer, graph: fx.GraphModule, weight: fx.Node) -> fx.Node:
    """data [..., K] in bfloat16 by int8 weight [N, K] with scales [N], then in its own type the bias: [..., N].

    Rows are padded with zeros to a multiple of MULTIPLE.
    """
    data, bias = write.node.args[0], (*write.node.args, None)[2]
    assert isinstance(data, fx.Node)
    shape, outputs = data.meta["val"].shape, weight.meta["val"].shape[0]
    missing = -shape[-1] % MULTIPLE
    integers, scales = rounded(rewriting.tensor_of(graph, weight))
    stored = rewriting.store(
        graph,
        weight,
        "linear",
        {"int8": nn.functional.pad(integers, (0, missing)), "scale": scales.to(torch.bfloat16)},
    )
    rows = write.call(aten.to.dtype, data, torch.bfloat16)
    if len(shape) != 2:
        rows = write.call(aten.reshape.default, rows, [-1, shape[-1]])
    if missing:
        rows = write.call(aten.constant_pad_nd.default, rows, [0, missing])
    found = write.call(
        aten.to.dtype, write.call(aten._weight_int8pack_mm.default, rows, *stored), data.meta["val"].dtype
    )
    if len(shape) != 2:
        sizes = [
            size if isinstance(size, int) else write.call(aten.sym_size.int, data, at)
            for at, size in enumerate(shape[:-1])
        ]
        found = write.call(aten.reshape.default, found, [*sizes, outputs])
    return found if bias is None else write.call(aten.add.Tensor, found, bias)
