"""Losses: a number a sample, of a network's output and the targets."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from raq.errors import StageError, UserError, first_line
from raq.model.user_code import import_function

IGNORED = -100  # what torch's cross-entropy leaves aside
Loss = Callable[[Tensor, Any], Tensor]


def loss_by_sample(name: str | None, label_smoothing: float, working_directory: str | None) -> Loss:
    """The loss of this name: of (output [n, ...], targets) a number a sample, [n].

    A function of the user's may also give one number for the batch, which then stands for each sample. Raises UserError
    if there is none, or if it cannot be imported; the loss itself raises StageError where it cannot be computed.
    """
    if name is None:
        raise UserError(
            "nothing says what to train with: this metric has no loss of its own",
            "set loss to cross_entropy, mse or module:function; or give trained weights and set qat to null",
        )
    own = import_function(name, working_directory) if ":" in name else None

    def loss(output: Tensor, targets: Any) -> Tensor:
        try:
            found = own(output, targets) if own is not None else _BUILT_IN[name](output, targets, label_smoothing)
            found = torch.as_tensor(found)
            return found.expand(len(output)) if found.ndim == 0 else found.reshape(len(output), -1).mean(1)
        except Exception as error:  # the user's function raises what it likes
            raise StageError(
                f"the loss {name} cannot be computed of an output {list(output.shape)}: {first_line(error)}",
                "see what the network gives (model.output) and what the data's targets are",
            ) from error

    return loss


def no_loss(output: Tensor, targets: Any) -> Tensor:
    """Nothing, for each sample: what is trained on comes from a teacher alone."""
    return output.new_zeros(len(output))


def _cross_entropy(output: Tensor, targets: Any, label_smoothing: float) -> Tensor:
    wanted = targets.long()
    if output.ndim > 2:  # masks: what no class has (255, say) is left aside
        wanted = wanted.where((wanted >= 0) & (wanted < output.shape[1]), IGNORED)
    elif wanted.ndim == 2:
        wanted = wanted.squeeze(1)
    return F.cross_entropy(output, wanted, reduction="none", label_smoothing=label_smoothing, ignore_index=IGNORED)


def _squared_error(output: Tensor, targets: Any, label_smoothing: float) -> Tensor:
    if [size for size in targets.shape if size != 1] != [size for size in output.shape if size != 1]:
        raise ValueError(f"targets are {list(targets.shape)}")
    return F.mse_loss(output, targets.to(output.dtype).reshape(output.shape), reduction="none")


_BUILT_IN: dict[str, Callable[[Tensor, Any, float], Tensor]] = {"cross_entropy": _cross_entropy, "mse": _squared_error}
