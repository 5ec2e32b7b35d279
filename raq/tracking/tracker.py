"""Who is told of a run beside the terminal: what a tracker is given, and what is given to all of them."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from operator import methodcaller
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from raq.errors import first_line
from raq.experiment.schema import Experiment
from raq.lazy import require_library, resolve
from raq.report.changes import flat
from raq.report.summary import summarise
from raq.report.types import RunSummary

Values = Mapping[str, float]
TRACKERS = {
    "tensorboard": "raq.tracking.to_tensorboard:TensorBoard",
    "mlflow": "raq.tracking.to_mlflow:MLflow",
    "wandb": "raq.tracking.to_wandb:WandB",
}
NOT_SCALARS = ("epoch", "epochs", "side")


class Tracker(Protocol):
    """One of those. All its methods may raise whatever its library does."""

    def scalars(self, values: Values, step: int) -> None:
        """Values by name, such as train/loss, at a step: an epoch, from 1."""

    def trial(self, sweep: str, number: int, config: Mapping[str, Any], values: Values, *, failed: bool) -> None:
        """A finished trial of a sweep: what was tried, what came out, and whether it failed."""

    def result(self, values: Values, texts: Mapping[str, str]) -> None:
        """What the run came to: numbers by name, and the verdict in words."""

    def close(self, *, failed: bool) -> None:
        """No more will come. failed: the run has stopped without being complete."""


class Trackers:
    """All that a run has. One that fails is told of once and left out: it ends no run.

    note: is told of it.
    """

    def __init__(self, made: Mapping[str, Tracker], note: Callable[[str], None]) -> None:
        self.made, self.note = dict(made), note

    def stage(self, name: str, event: Mapping[str, Any]) -> None:
        """Something of a stage: epochs and trials are passed on."""
        if "epoch_done" in event:
            row = event["epoch_done"]
            values = {
                f"{name}/{key}": float(value)
                for key, value in row.items()
                if key not in NOT_SCALARS and is_number(value)
            }
            self._each(methodcaller("scalars", values, int(row["epoch"]) + 1))
        if event.get("state") == "done" and name.startswith("sweep/"):
            results = event["results"]
            self._trials(name.removeprefix("sweep/"), [*(results.get("trials") or []), *(results.get("failed") or [])])

    def _trials(self, sweep: str, trials: Sequence[Mapping[str, Any]]) -> None:
        for number, trial in enumerate(trials, start=1):
            config = trial.get("config") or {key: value for key, value in trial.items() if not is_number(value)}
            values = {key: float(value) for key, value in trial.items() if is_number(value)}
            self._each(methodcaller("trial", sweep, number, config, values, failed="error" in trial))

    def finished(self, run_folder: Path) -> None:
        """The run is complete: what it came to, and no more will come."""
        if not self.made:
            return
        summary = summarise(run_folder)
        values, texts = results_of(summary), {"verdict": summary["verdict"]["why"]}
        self._each(methodcaller("result", values, texts))
        self._each(methodcaller("close", failed=False))

    def ended(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """A context's end: what a run that stopped has so far is kept."""
        if error is not None:
            self._each(methodcaller("close", failed=True))

    def _each(self, tell: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self.made.items()):
            try:
                tell(tracker)
            except Exception as error:  # they raise what they like
                del self.made[name]
                with suppress(Exception):  # what it has so far is to be seen as not complete
                    tracker.close(failed=True)
                self.note(f"tracking by {name} has ended: {type(error).__name__}: {first_line(error)}")


def is_number(value: Any) -> bool:
    """Whether it is a finite number, and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def results_of(summary: RunSummary) -> dict[str, float]:
    """The numbers of a run by name: <candidate>/<what>, and <candidate>/<runtime>/batch_<n>/<what> of speeds."""
    found: dict[str, float | None] = {}
    for candidate in summary["candidates"]:
        name = candidate["name"]
        judged = candidate["metric"]
        if judged is not None:
            found[f"{name}/{judged['name'].replace(':', '.')}"] = judged["value"]
            found[f"{name}/drop"] = judged["drop"]
        for artifact in candidate["artifacts"]:
            found[f"{name}/weight_bytes"] = artifact["weight_bytes"]
            found[f"{name}/size_bytes"] = artifact["size_bytes"]
            found[f"{name}/executed_int8_mac_share"] = artifact["executed_int8_mac_share"]
        for row in candidate["latency"]:
            at = f"{name}/{row['runtime']}/{row['device']}/batch_{row['batch_size']}"
            found[f"{at}/p50_ms"] = row["p50_ms"]
            found[f"{at}/speedup"] = row["speedup"]
            found[f"{at}/speedup_over_best_fp32"] = row.get("speedup_over_best_fp32")
    return {key: value for key, value in found.items() if value is not None and is_number(value)}


def start_tracking(experiment: Experiment, folder: Path, note: Callable[[str], None]) -> Trackers:
    """The trackers of a run that begins in this folder."""
    made: dict[str, Tracker] = {}
    settings = experiment.model_dump(mode="json")
    for name in experiment.tracking:
        try:
            made[name] = resolve(TRACKERS[name])(folder, settings)
        except Exception as error:  # they raise what they like
            note(f"tracking by {name} cannot begin: {type(error).__name__}: {first_line(error)}")
    return Trackers(made, note)


def flat_settings(settings: Mapping[str, Any]) -> dict[str, str]:
    """The experiment's keys as text, each by its whole name."""
    return {key: str(value) for key, value in flat(settings).items()}


def refuse_missing(names: Sequence[str]) -> None:
    """UserError, naming the extra, if the library of a tracker is not installed."""
    for name in names:
        if name != "tensorboard":  # tensorboardX is one of Ray Tune's own libraries
            require_library(name, name)
