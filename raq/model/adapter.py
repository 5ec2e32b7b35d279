"""A network of any signature as one that takes its inputs in order and gives the one output that is judged.

The network itself is changed, not wrapped: names of its layers and of its tensors stay what they are. Its class is
replaced by one of its own that derives from it and has another `forward`, which torch.export follows like any other.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from raq.errors import UserError


def adapt(network: nn.Module, names: Sequence[str] | None, output: str | int | None) -> nn.Module:
    """The network, in place. names: what its inputs are called, None where it takes them in order; output: which one.

    UserError for a network whose class cannot be derived from.
    """
    if names is None and output is None:
        return network
    kind = type(network)

    class Adapted(kind):  # type: ignore[misc, valid-type]
        """The user's network, called in another way."""

        def forward(self, *inputs: Tensor) -> Any:
            """The chosen output for the inputs in order."""
            named = {} if names is None else dict(zip(names, inputs, strict=True))
            given = super().forward(**named) if named else super().forward(*inputs)
            return given if output is None else pick(given, output)

    Adapted.__name__, Adapted.__qualname__ = kind.__name__, kind.__qualname__
    Adapted.__module__ = kind.__module__
    try:
        network.__class__ = Adapted
    except TypeError as error:
        raise UserError(
            f"the model's class {kind.__name__} cannot be adapted: {error}",
            "let its function return a plain nn.Module that takes tensors and gives one",
        ) from None
    return network


def pick(given: Any, output: str | int) -> Any:
    """An output by its key, attribute or number."""
    if isinstance(output, int):
        return list(given.values())[output] if isinstance(given, Mapping) else given[output]
    return given[output] if isinstance(given, Mapping) else getattr(given, output)


def outputs_of(given: Any) -> dict[str | int, Any]:
    """What a network gave, by what `model.output` would call each part; empty if that is one thing alone."""
    if isinstance(given, Mapping):
        return dict(given)
    if isinstance(given, tuple) and hasattr(given, "_fields"):
        return dict(zip(given._fields, given, strict=True))
    if isinstance(given, tuple | list):
        return dict(enumerate(given))
    if dataclasses.is_dataclass(given) and not isinstance(given, type):
        return {each.name: getattr(given, each.name) for each in dataclasses.fields(given)}
    return {}
