"""An experiment with its data found and its stages planned.

Imports neither torch nor ray at its top.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raq.environment import Machine, environment_kept, has_vnni, machine, versions
from raq.errors import UserError
from raq.experiment.fields import INCLUDED
from raq.experiment.load import Given, load_experiment
from raq.experiment.schema import Experiment
from raq.plan.facts import DataFound, Facts
from raq.plan.fitting import fit_to_data
from raq.plan.stages import Stage, make_plan
from raq.store.files import file_digest

MIN_VALIDATION_IMAGES = 10


@dataclass(frozen=True)
class Prepared:
    """An experiment with its data found and its stages planned."""

    experiment: Experiment
    data: DataFound
    plan: list[Stage]
    notes: tuple[str, ...] = ()
    """What of the experiment the data leave no room for, a sentence each."""


@dataclass(frozen=True)
class DryRun:
    """What a run would do. Of the stages that are stale, by name: why, where they would be done, and how long they
    took last; that is left out where it is not known."""

    plan: list[Stage]
    stale: dict[str, str]
    where: dict[str, str]
    expected_s: Mapping[str, float]
    notes: tuple[str, ...] = ()


def prepare(given: Given, overrides: Sequence[str], where: Machine | None = None) -> Prepared:
    """Read the experiment, find its data, plan its stages; `where`: the machine of the stages, default this one.

    Raises UserError for whatever is wrong with the experiment, its data or its weights.
    """
    from raq.model.checks import data_notes
    from raq.model.dataset import load_dataset

    here = where or machine()  # before libraries that reading data imports set variables of their own
    experiment = load_experiment(given, overrides)
    with environment_kept():
        dataset = load_dataset(experiment.data, str(Path.cwd()))
        odd = data_notes(dataset)
    found = DataFound(**dataset.describe())
    experiment, fitted = fit_to_data(experiment, found)
    notes = (*odd, *fitted)
    available = found.calibration_images
    if experiment.ptq is not None and experiment.ptq.calibration.size > available:
        raise UserError(
            f"ptq.calibration.size is {experiment.ptq.calibration.size}, and there are {available} samples to "
            "calibrate with",
            f"lower it to at most {available}",
        )
    tried = experiment.sweep.ptq if experiment.sweep is not None else None
    largest = max(tried.sizes, default=0) if tried is not None else 0
    if largest > available:
        raise UserError(
            f"sweep.ptq.calibration.size has {largest}, and there are {available} training images",
            f"lower it to at most {available}",
        )
    if experiment.sweep is not None and found.validation_images < MIN_VALIDATION_IMAGES:
        raise UserError(
            f"sweep compares its trials on {found.validation_images} validation images, too few to compare",
            f"raise data.validation_fraction or data.train_limit, to {MIN_VALIDATION_IMAGES} images at least",
        )
    swept = tried.reduce_range if tried is not None else ()
    x86 = experiment.ptq is not None and experiment.ptq.backend == "x86"
    if x86 and False in swept and not has_vnni(here):
        raise UserError(
            "sweep.ptq.reduce_range has false, and this CPU has no VNNI: its int8 kernels could saturate, which "
            "trials, that compute in float, would not show",
            "leave it out here",
        )
    facts = Facts(found, here, _weights_digest(experiment), _sources(experiment))
    return Prepared(experiment, found, make_plan(experiment, facts), notes)


def _weights_digest(experiment: Experiment) -> str | None:
    if experiment.model.weights in (None, INCLUDED):
        return experiment.model.weights
    path = Path(str(experiment.model.weights))
    if path.exists() and not path.is_file():
        raise UserError(f"model.weights: {path} is not a file", "give the path of a state dict")
    try:
        return file_digest(path)
    except OSError as error:
        raise UserError(
            f"model.weights: {path} cannot be read: {error.strerror}", "give the path of a state dict"
        ) from None


def _sources(experiment: Experiment) -> dict[str, Any]:
    """What the code of the user's own model is made of: a change there makes stages stale."""
    from raq.model.user_code import is_own, sources_of

    # the data's function is covered by what it returns: the data's digest
    named = (experiment.model.name, experiment.metric.function, experiment.loss or "")
    found = {name: sources_of(name, str(Path.cwd())).model_dump() for name in named if is_own(name)}
    library, _, name = experiment.model.name.partition(":")
    if library in ("timm", "transformers"):  # their networks are what their version makes them, and their files
        found[experiment.model.name] = {
            "files": _files_of(name) if library == "transformers" else {},
            "distributions": {library: versions((library,))[library] or "not installed"},
        }
    return found


def _files_of(name: str) -> dict[str, str]:
    """SHA-256 of the files of a model of transformers."""
    from raq.model.library_models import transformers_files

    return {str(file): file_digest(file) for file in transformers_files(name)}
