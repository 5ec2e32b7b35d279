"""Batch norms folded into the convolutions before them, in float32."""

import torch
from torch import Tensor, fx, nn
from torchao.quantization.pt2e.utils import _fuse_conv_bn_

from raq.model.inputs import Example
from raq.quantize.convert import drop_unused_tensors
from raq.quantize.export import export_network


def fold_batch_norms(graph: fx.GraphModule) -> None:
    """Fold an exported graph's batch norms into the convolutions before them, in place."""
    with torch.no_grad():
        _fuse_conv_bn_(graph)
    drop_unused_tensors(graph)


def folded_graph(network: nn.Module, example: Tensor | Example) -> fx.GraphModule:
    """The network's graph in evaluation mode, its batch norms folded where a convolution is before them.

    example: tensors [n, ...] with n at least 2. Raises UserError if it cannot be exported.
    """
    graph = export_network(network, example).module()
    fold_batch_norms(graph)
    return graph
