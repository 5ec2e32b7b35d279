"""How much a network's outputs change by noise in its layers' channels.

The outputs' error by small errors e of a layer's outputs is J e, whose square is on average the sum of e^2 times the
diagonal of J^T J, if the errors are independent of one another. The diagonal's mean is that of (J^T v)^2 for v of a
standard normal distribution: a pass backwards (Hutchinson's estimator; Li et al. 2021, BRECQ, weight by the squares of
gradients too, there of the loss).
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from raq.errors import StageError, first_line
from raq.model.inputs import copies
from raq.quantize.side_by_side import channel_of

BATCH = 8  # samples at once: activations of all layers are held


class _Listening(fx.Interpreter):
    """Runs a graph, and adds up the squares of what comes back to the outputs of some layers, by channel."""

    def __init__(self, graph: fx.GraphModule, layers: Collection[fx.Node]) -> None:
        super().__init__(graph)
        self.layers, self.found = layers, {layer: torch.zeros(0) for layer in layers}
        self.buffers: dict[str, Any] = {}

    def get_attr(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A parameter; a copy of a buffer, which the graph may write into."""
        found = super().get_attr(target, args, kwargs)
        if isinstance(found, nn.Parameter) or not isinstance(found, Tensor):
            return found
        return self.buffers.setdefault(target, found.clone())

    def run_node(self, n: fx.Node) -> Any:
        """The value of a node; of a layer, one that is told its gradient."""
        value = super().run_node(n)
        if n not in self.layers:
            return value
        value = value if value.requires_grad else value.detach().requires_grad_()
        heard = value.clone()  # not a leaf: what comes next may write into it
        axes = [at for at in range(heard.ndim) if at != channel_of(n, heard)]
        self.found[n] = torch.zeros(heard.shape[channel_of(n, heard)], dtype=torch.float64)

        def add(gradient: Tensor) -> None:
            squares = gradient.double().square()  # not finite where the square root of 0 is, say
            self.found[n] += torch.where(squares.isfinite(), squares, 0.0).sum(dim=axes)

        heard.register_hook(add)
        return heard


def sensitivities(
    graph: fx.GraphModule, inputs: tuple[Tensor, ...], layers: Collection[fx.Node], seed: int = 0
) -> dict[fx.Node, Tensor]:
    """By layer, a float64 tensor [channels]: by how much noise of variance 1 in all numbers of this channel changes the
    outputs, as the square of the change of a sample's outputs, summed over them, on average.

    inputs: samples [n, ...], left as they are; layers: convolutions and linear layers of the graph. Channels that no
    gradient comes back to have 0: those that reach no output, and those before what has none (rounding, detach).
    Numbers whose gradient is not finite are left out. Raises StageError if torch cannot compute the gradient.
    """
    draws = torch.Generator().manual_seed(seed)
    learning = [parameter for parameter in graph.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    total = dict.fromkeys(layers, torch.zeros(()))
    count = len(inputs[0])
    try:
        for at in range(0, count, BATCH):
            listening = _Listening(graph, layers)
            _listen(listening, copies(one[at : at + BATCH] for one in inputs), draws)
            for layer, found in listening.found.items():
                total[layer] = total[layer] + found / count
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
    return total


def _listen(listening: _Listening, inputs: tuple[Tensor, ...], draws: torch.Generator) -> None:
    """Send random vectors back from the outputs."""
    with torch.enable_grad(), gradient_errors():
        outputs = [
            one for one in pytree.tree_leaves(listening.run(*inputs)) if isinstance(one, Tensor) and one.requires_grad
        ]
        vectors = [torch.randn(one.shape, generator=draws).to(one.dtype) for one in outputs]
        if outputs:
            torch.autograd.backward(outputs, vectors)


@contextmanager
def gradient_errors() -> Iterator[None]:
    """Raise torch's error in a pass with gradients as StageError."""
    try:
        yield
    except (RuntimeError, NotImplementedError) as error:
        raise StageError(
            f"the gradient of the network's outputs cannot be computed: {first_line(error)}",
            "do without equalization and learned_rounding, which need it, in ptq and in sweep.ptq",
        ) from error
