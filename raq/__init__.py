"""raq: decide which quantized version of a model to ship, and prove it."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from raq.model.data import Arrays, Columns, Data, from_frame
    from raq.report.finished import Run

__all__ = ["Arrays", "Columns", "Data", "from_frame", "load_artifact", "open_run"]
OF_DATA = ("Arrays", "Columns", "Data", "from_frame")  # read from raq.model.data when they are asked for


def __getattr__(name: str) -> Any:
    if name in OF_DATA:
        from raq.model import data

        return getattr(data, name)
    raise AttributeError(f"module 'raq' has no attribute {name!r}")


def open_run(path: "str | os.PathLike[str]") -> "Run":
    """A run by its folder (results/runs/<id>), to look at from Python. UserError if there is no readable run there."""
    from raq.report.finished import Run

    return Run(path)


def load_artifact(path: "str | os.PathLike[str]", threads: int | None = None) -> "Callable[..., NDArray[np.float32]]":
    """An artifact of any runtime as a function of the network's inputs [n, ...] to its output, float32 [n, ...].

    threads: None for as many as this process has CPUs. Raises as `raq.artifact.loaded.load_artifact` does.
    """
    from raq.artifact import loaded

    return loaded.load_artifact(path, threads)
