"""An artifact of any runtime as a function, for scripts and notebooks: `raq.load_artifact`."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from raq.artifact.runtimes import in_parts, read_metadata, runtime_of_file
from raq.environment import available_cpus
from raq.errors import UserError
from raq.lazy import resolve

if TYPE_CHECKING:
    from numpy.typing import NDArray


def load_artifact(path: "str | os.PathLike[str]", threads: int | None = None) -> "Callable[[Any], NDArray[np.float32]]":
    """The artifact as a function of normalised images, float32 [n, 3, H, W] (array or tensor), to logits [n, classes].

    threads: of this process, for what the runtime computes; None: as many as there are CPUs for it. Native code, or
    instructions for a runtime: load only what you trust.

    Raises UserError if there is no such file or a library is missing, StageError if it is damaged or was made by
    another torch; the function raises UserError for images of another shape.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"{file}: there is no such file", "give the path of an artifact (.pt2, .pte or .onnx)")
    if threads is not None and threads < 1:
        raise UserError(f"threads is {threads}", "give a whole number from 1, or leave it out")
    runtime, metadata = runtime_of_file(file), read_metadata(file)
    used = threads or len(available_cpus())
    torch.set_num_threads(used)
    network = resolve(runtime.load)(file, used)
    if metadata.max_batch is not None:
        network = in_parts(network, metadata.max_batch)

    def function(images: Any) -> "NDArray[np.float32]":
        given = torch.as_tensor(images, dtype=torch.float32).contiguous()
        if given.ndim != 4 or not len(given) or metadata.input_shape not in (None, tuple(given.shape[1:])):
            wanted = "" if metadata.input_shape is None else f" of {list(metadata.input_shape)}"
            raise UserError(f"images of shape {list(given.shape)}", f"give at least one image{wanted}: [n, 3, H, W]")
        with torch.inference_mode():
            logits: NDArray[np.float32] = network(given.to(metadata.device)).float().cpu().numpy()
        return logits

    return function
