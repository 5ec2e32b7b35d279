"""An artifact of any runtime as a function, for scripts and notebooks: `raq.load_artifact`."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from raq.artifact.runtimes import in_parts, read_metadata, runtime_of_file
from raq.environment import available_cpus
from raq.errors import UserError
from raq.experiment.inputs import Inputs, InputSpec, in_words
from raq.lazy import resolve

if TYPE_CHECKING:
    from numpy.typing import NDArray


def load_artifact(path: "str | os.PathLike[str]", threads: int | None = None) -> "Callable[..., NDArray[np.float32]]":
    """The artifact as a function of the network's inputs [n, ...] (arrays or tensors) to its output, float32 [n, ...].

    It is called with the inputs in order, or with one mapping of them by name; images are normalised float32
    [n, C, H, W]. threads: of this process, for what the runtime computes; None: as many as there are CPUs for it.
    Native code, or instructions for a runtime: load only what you trust.

    Raises UserError if there is no such file or a library is missing, StageError if it is damaged or was made by
    another torch; the function raises UserError for inputs of another number or shape.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"{file}: there is no such file", "give the path of an artifact (.pt2, .pte, .onnx or .trt)")
    if threads is not None and threads < 1:
        raise UserError(f"threads is {threads}", "give a whole number from 1, or leave it out")
    runtime, metadata = runtime_of_file(file), read_metadata(file)
    used = threads or len(available_cpus())
    torch.set_num_threads(used)
    network = resolve(runtime.load)(file, used)
    if metadata.max_batch is not None:
        network = in_parts(network, metadata.max_batch)

    def function(*inputs: Any) -> "NDArray[np.float32]":
        given = _fitting(inputs, metadata.inputs)
        with torch.inference_mode():
            found = network(*(value.to(metadata.device) for value in given))
            output: NDArray[np.float32] = found.float().cpu().numpy()
        return output

    return function


def _own(value: Tensor) -> Tensor:
    """A copy, contiguous: a network may write into what it is given."""
    return value.clone(memory_format=torch.contiguous_format)


def _fitting(inputs: tuple[Any, ...], wanted: Inputs | None) -> list[Tensor]:
    """The inputs as tensors of the types wanted; UserError for another number, name or shape. None: any will do."""
    if wanted is None:
        return [_own(torch.as_tensor(value)) for value in inputs]
    if len(inputs) == 1 and isinstance(inputs[0], Mapping):
        missing = [one.name for one in wanted if one.name not in inputs[0]]
        if missing:
            raise UserError(f"there is no input {missing[0]!r}", f"it takes {in_words(wanted)}")
        inputs = tuple(inputs[0][one.name] for one in wanted)
    if len(inputs) != len(wanted):
        raise UserError(f"{len(inputs)} inputs", f"it takes {in_words(wanted)}")
    given = [
        _own(torch.as_tensor(value, dtype=getattr(torch, one.dtype))) for value, one in zip(inputs, wanted, strict=True)
    ]
    for value, one in zip(given, wanted, strict=True):
        if value.ndim != len(one.shape) + 1 or not len(value) or not _fits(value, one):
            raise UserError(
                f"{one.name} of shape {list(value.shape)}", f"give at least one sample; it takes {in_words(wanted)}"
            )
    return given


def _fits(value: Tensor, one: InputSpec) -> bool:
    """Whether every size is the input's, or one that its axis may have."""
    axes = {axis.dimension: axis for axis in one.axes}
    sizes = zip(range(len(one.shape)), value.shape[1:], one.shape, strict=True)
    return all(axes[at].least <= size <= axes[at].most if at in axes else size == wanted for at, size, wanted in sizes)
