"""raq: decide which quantized version of a model to ship, and prove it."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from raq.api.finished import Run
    from raq.experiment.schema import Experiment
    from raq.model.data import Arrays, Columns, Data, from_frame

__all__ = ["Arrays", "Columns", "Data", "Run", "from_frame", "load_artifact", "open_run", "run"]
OF_DATA = ("Arrays", "Columns", "Data", "from_frame")  # read from raq.model.data when they are asked for


def __getattr__(name: str) -> Any:
    if name in OF_DATA:
        from raq.model import data

        return getattr(data, name)
    if name == "Run":
        from raq.api.finished import Run

        return Run
    raise AttributeError(f"module 'raq' has no attribute {name!r}")


def run(
    experiment: "str | os.PathLike[str] | Mapping[str, Any] | Experiment",
    overrides: "Sequence[str]" = (),
    results: "str | os.PathLike[str]" = "results",
    *,
    address: str | None = None,
    fresh: bool = False,
    wait_s: float = 0.0,
) -> "Run":
    """Do what is stale of an experiment, as `raq run` does, and give its run; a notebook shows how it goes.

    experiment: a YAML file, or what stands in one as a mapping, or an `Experiment`. overrides: such as
    "train.epochs=1". results: a folder, or an address (s3://...). address: of a Ray cluster; None: this machine. fresh:
    do every stage again. wait_s: how long to wait for nodes of the cluster.

    Functions named in the experiment are imported from files in the working directory, not from a notebook's cells.
    Raises RaqError (message, hint) for what is wrong with the experiment and for a stage that failed; finished stages
    are kept.
    """
    from raq.api.finished import Run
    from raq.api.notebook import NotebookDisplay, in_notebook
    from raq.experiment.load import as_given
    from raq.report.live import RunDisplay
    from raq.running import run as run_experiment

    display = NotebookDisplay() if in_notebook() else RunDisplay()
    place = str(results)
    done = run_experiment(as_given(experiment), overrides, place, display, address, fresh, wait_s)
    return Run(done.folder)


def open_run(path: "str | os.PathLike[str]") -> "Run":
    """A run by its folder (results/runs/<id>), to look at from Python. UserError if there is no readable run there."""
    from raq.api.finished import Run

    return Run(path)


def load_artifact(path: "str | os.PathLike[str]", threads: int | None = None) -> "Callable[..., NDArray[np.float32]]":
    """An artifact of any runtime as a function of the network's inputs [n, ...] to its output, float32 [n, ...].

    threads: None for as many as this process has CPUs. Raises as `raq.artifact.loaded.load_artifact` does.
    """
    from raq.artifact import loaded

    return loaded.load_artifact(path, threads)
