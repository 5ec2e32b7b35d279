"""A calibrated graph in float and in integers, side by side on the same samples, layer by layer."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx

from raq.model.inputs import copies
from raq.quantize.export import is_layer
from raq.quantize.ptq import FixedFakeQuantize


class Lane(fx.Interpreter):
    """The graph as one of the two computes it. env: the values of nodes that are still needed."""

    def quantizer(self, node: fx.Node) -> FixedFakeQuantize | None:
        """The fake quantizer that a node calls; None of any other node."""
        found = self.fetch_attr(str(node.target)) if node.op == "call_module" else None
        return found if isinstance(found, FixedFakeQuantize) else None


ORIGINALS = "original_tensors"  # in the meta of a graph whose tensors were corrected: what they were, by their names


class FloatLane(Lane):
    """The graph without its fake quantizers, and with the tensors that it had: FP32."""

    def get_attr(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A parameter or buffer; of a corrected one, what it was."""
        meta: dict[str, Any] = getattr(self.module, "meta", {})
        originals = meta.get(ORIGINALS, {})
        return originals[target] if target in originals else super().get_attr(target, args, kwargs)

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Its input itself, of a fake quantizer."""
        if isinstance(self.fetch_attr(target), FixedFakeQuantize):
            return args[0]
        return super().call_module(target, args, kwargs)


def side_by_side(simulated: fx.GraphModule, inputs: tuple[Tensor, ...]) -> Iterator[tuple[Lane, Lane, fx.Node]]:
    """(in float, in integers, layer) for every layer that both have just computed, in order of execution.

    simulated: the graph within `ptq.simulated`. What is written into a lane's env is what the next layers read.
    """
    exact, rounded = FloatLane(simulated), Lane(simulated)
    for lane in (exact, rounded):
        lane.args_iter = iter(copies(inputs))
    with torch.no_grad():
        for node in list(simulated.graph.nodes):
            for lane in (exact, rounded):
                lane.env[node] = lane.run_node(node)
            if is_layer(node):
                yield exact, rounded, node
            for done in exact.user_to_last_uses.get(node, []):
                for lane in (exact, rounded):
                    del lane.env[done]


def channel_of(node: fx.Node, output: Tensor) -> int:
    """Which dimension of a layer's output its channels are: 1 of a convolution's, the last one of a linear layer's."""
    return 1 if "conv" in str(node.target) else output.ndim - 1


def channel_means(values: Tensor, channel: int) -> Tensor:
    """The means over all other dimensions, float64 [channels]."""
    return values.double().mean(dim=[at for at in range(values.ndim) if at != channel])
