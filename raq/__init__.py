"""raq: decide which quantized version of a model to ship, and prove it."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os
    from collections.abc import Callable
    from typing import Any

    import numpy as np
    from numpy.typing import NDArray

    from raq.report.finished import Run

__all__ = ["load_artifact", "open_run"]


def open_run(path: "str | os.PathLike[str]") -> "Run":
    """A run by its folder (results/runs/<id>), to look at from Python. UserError if there is no readable run there."""
    from raq.report.finished import Run

    return Run(path)


def load_artifact(path: "str | os.PathLike[str]", threads: int | None = None) -> "Callable[[Any], NDArray[np.float32]]":
    """An artifact of any runtime as a function of normalised images, float32 [n, 3, H, W], to logits [n, classes].

    threads: None for as many as this process has CPUs. Raises as `raq.artifact.loaded.load_artifact` does.
    """
    from raq.artifact import loaded

    return loaded.load_artifact(path, threads)
