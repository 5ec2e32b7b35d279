"""MLflow: a run in a local store in the run's folder, or where MLFLOW_TRACKING_URI says; a child run a trial."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raq.report.terminal import printable
from raq.tracking.tracker import Values, flat_settings

FOLDER = "mlruns"
MAX_PARAM, MAX_TAG = 6000, 8000  # characters, of MLflow's own


class MLflow:
    """Metrics by epoch, the experiment's keys as parameters, trials as child runs, the verdict as a tag."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # nothing is sent that nobody asked for
        from mlflow import MlflowClient

        self.client = MlflowClient(tracking_uri=place_of(folder))
        name = str(settings["name"])
        known = self.client.get_experiment_by_name(name)
        self.experiment = known.experiment_id if known is not None else self.client.create_experiment(name)
        self.run = self.client.create_run(self.experiment, run_name=folder.name).info.run_id
        for key, value in flat_settings(settings).items():
            self.client.log_param(self.run, key, _cut(value, MAX_PARAM))

    def scalars(self, values: Values, step: int) -> None:
        """Values by name at an epoch."""
        for name, value in values.items():
            self.client.log_metric(self.run, _name(name), value, step=step)

    def trial(self, sweep: str, number: int, config: Mapping[str, Any], values: Values, *, failed: bool) -> None:
        """A finished trial, as a child run."""
        tags = {"mlflow.parentRunId": self.run}
        child = self.client.create_run(self.experiment, tags=tags, run_name=f"{sweep}-{number}").info.run_id
        for key, value in config.items():
            self.client.log_param(child, key, _cut(str(value), MAX_PARAM))
        for name, value in values.items():
            self.client.log_metric(child, _name(name), value)
        self.client.set_terminated(child, status="FAILED" if failed else "FINISHED")

    def result(self, values: Values, texts: Mapping[str, str]) -> None:
        """What the run came to."""
        self.scalars(values, 0)
        for name, text in texts.items():
            self.client.set_tag(self.run, name, _cut(printable(text), MAX_TAG))

    def close(self, *, failed: bool) -> None:
        """The run has ended."""
        self.client.set_terminated(self.run, status="FAILED" if failed else "FINISHED")


def place_of(folder: Path) -> str:
    """The address of the store of a run in this folder.

    MLflow has its files in maintenance, and wants to be told that they are meant; a database needs more of it than the
    extra installs.
    """
    given = os.environ.get("MLFLOW_TRACKING_URI")
    if not given:
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    return given or (folder / FOLDER).resolve().as_uri()


def _cut(text: str, most: int) -> str:
    """The text, or its beginning and that there is more."""
    return text if len(text) <= most else f"{text[: most - 40]} ... ({len(text)} characters)"


def _name(text: str) -> str:
    """A name that MLflow takes: letters, digits, and a few signs."""
    return "".join(letter if letter.isalnum() or letter in "_-. /" else "_" for letter in text)
