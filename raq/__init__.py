"""raq: decide which quantized version of a model to ship, and prove it."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os

    from raq.report.finished import Run

__all__ = ["open_run"]


def open_run(path: "str | os.PathLike[str]") -> "Run":
    """A run by its folder (results/runs/<id>), to look at from Python. UserError if there is no readable run there."""
    from raq.report.finished import Run

    return Run(path)
