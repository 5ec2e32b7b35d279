"""The stage that searches for a quantization-aware training: one trial, and what they come to.

Plain torch, never ray; torch is imported inside the functions. A trial is kept by all of its settings: one that was
interrupted goes on after its last epoch, one that is finished is not done again. After the search only the chosen one
keeps its weights.
"""

import gc
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from raq.errors import StageError
from raq.experiment.metric import Metric, difference
from raq.experiment.sweep import Config
from raq.experiment.training import Qat
from raq.stages.call import Call, Progress, Results, trials_folder
from raq.stages.inputs import read_dataset, read_trained_network, scorer
from raq.stages.qat import train_in, trained_graph
from raq.stages.transfer import store_of
from raq.stages.trials import (
    Judged,
    columns_of,
    evaluate_baseline,
    keep_answers,
    metric_of,
    read_answers,
    read_baseline,
    write_table,
)
from raq.statistics.proportions import together
from raq.store.files import atomic_write, short_digest, write_json
from raq.store.settings import QatSettings, QatSweepSettings
from raq.store.sweep_results import as_written, with_written_names
from raq.store.views import View, view, view_file
from raq.sweep.answers import Answers
from raq.sweep.qat import Search, importance, pareto_front

if TYPE_CHECKING:
    from raq.model.checkpoints import TrainingResult


class EpochRow(View):
    """Of a row of a training's history, what a search needs: the epoch, from 0, and the metric after it."""

    epoch: int
    validation: float

    def quality(self, metric: Metric) -> float:
        """The metric, negated where less is better: a search looks for the highest."""
        return metric.sign * self.validation


class TrialRecord(Judged):
    """A finished trial's own record. history: a row an epoch."""

    qat: dict[str, Any]
    history: list[dict[str, Any]]
    best_epoch: int


Report = Callable[[dict[str, Any]], None]


class _EndedEarly(Exception):
    """Raised out of a trial of this process that goes no further."""


def qat_sweep_stage(call: Call, progress: Progress) -> Results:
    """All trials in this process, one after the other."""
    prepare_qat_sweep(call, progress)
    search, metric = new_search(call), metric_of(call)
    while (number := search.ask()) is not None:
        progress({"share": number / search.asked, "text": f"trial {number + 1} of {search.asked}"})

        def report(row: dict[str, Any], number: int = number) -> None:
            epoch = view(EpochRow, row, "an epoch of a trial")
            if not search.tell(number, epoch.epoch, epoch.quality(metric)):
                raise _EndedEarly

        try:
            run_qat_trial(call, search.configs[number], report)
        except _EndedEarly:
            continue
        except StageError as error:
            search.fail(number, error.message)
    return finish_qat_sweep(call, search)


def new_search(call: Call) -> Search:
    """The search of this stage, nothing tried yet."""
    asked = call.read(QatSweepSettings)
    return Search(asked.sweep, asked.qat, asked.seed)


def call_of(call: Call, config: Config) -> Call:
    """The call of one trial's training, a stage qat of its own; what it does not try is as in `qat`."""
    written = call.read(QatSettings).qat.model_dump(mode="json")
    training = Qat.model_validate({**written, **config})
    assert isinstance(training.workers, int), "an Experiment allows no other in a sweep"
    settings = training.model_dump(mode="json")
    folder = trials_folder(call) / short_digest(settings)
    values = {**call.settings, "qat": settings}
    return replace(call, kind="qat", settings=values, folder=str(folder), workers=training.workers)


def record_of(trial: Call) -> Path:
    """Where a trial's record is, beside the folder of its checkpoints."""
    return Path(trial.folder).with_suffix(".json")


def prepare_qat_sweep(call: Call, progress: Progress) -> None:
    """Evaluate FP32 on the validation images, to compare with."""
    trials_folder(call).mkdir(parents=True, exist_ok=True)
    evaluate_baseline(call, read_trained_network(call), progress)


def run_qat_trial(call: Call, config: Config, report: Report) -> None:
    """One training in this process, its record kept; every epoch is reported, those too that are there already.

    report: takes a row of the training's history. It may raise, or never come back, to end the trial.
    """
    import torch

    from raq.model.checkpoints import LocalContext, read_result

    gc.collect()  # graphs of fx are cycles: the last trial's, and all that it trained, would stay for many trials
    trial = call_of(call, config)
    torch.set_num_threads(trial.cpus)
    known = finished(trial)
    if known is not None:
        for row in known.history:
            report(row)
        return

    class Context(LocalContext):
        """Reports every epoch, once its checkpoint is there."""

        def save(self, metrics: dict[str, Any], write: Callable[[Path], None]) -> None:
            super().save(metrics, write)
            report(metrics)

        def restore(self) -> Path | None:
            found = super().restore()
            for row in read_result(found).history if found is not None else []:
                report(row)
            return found

    store, folder = store_of(trial), Path(trial.folder)

    def saved(checkpoint: Path) -> None:
        store.send_checkpoint(folder, checkpoint)

    store.fetch_checkpoint(folder, folder)
    finish_trial(trial, train_in(trial, Context(folder, trial.device, saved=saved)))
    store.delete_work(folder)


def finished(trial: Call) -> TrialRecord | None:
    """The record of a trial that was trained to its end; None if it was not, or if a file of it is damaged."""
    record = record_of(trial)
    return view_file(TrialRecord, record) if read_answers(trial, record) is not None else None


def finish_trial(trial: Call, result: "TrainingResult") -> None:
    """Keep a finished training: its weights, its scores of the validation samples, its record; not its checkpoint."""
    from raq.model.checkpoints import keep_result
    from raq.model.evaluation import score

    record, dataset = record_of(trial), read_dataset(trial)
    samples = dataset.size("validation")
    scores = score(trained_graph(trial, result), dataset, scorer(trial), np.arange(samples), split="validation")
    judged = keep_answers(trial, record, scores, samples)
    with atomic_write(record.with_suffix(".pt")) as scratch:
        keep_result(result, scratch)
    qat = trial.read(QatSettings).qat.model_dump(mode="json")
    found = TrialRecord(qat=qat, history=result.history, best_epoch=result.best_epoch, **judged)
    write_json(record, found.model_dump())
    shutil.rmtree(trial.folder, ignore_errors=True)


def finish_qat_sweep(call: Call, search: Search) -> Results:
    """The table of all trials, which keys mattered, and the choice, whose weights go to the stage's folder.

    Chosen is the best on the validation samples, of the trials that were trained to their end; of equals the earliest.
    Raises StageError if none was.
    """
    from raq.model.checkpoints import CHECKPOINT

    metric = metric_of(call)
    trials, answers = _rows_of_trials(call, search, metric)
    if not answers:
        reason = next(iter(search.failed.values()), "")
        raise StageError(f"none of the {len(trials)} trials finished: {reason}", "see the log")
    scores, epochs = search.scores(), search.epochs_trained()
    front = pareto_front(scores, epochs)
    trials = [with_written_names({**row, "front": on}, metric) for row, on in zip(trials, front, strict=True)]
    best = max(answers, key=lambda number: (metric.sign * answers[number].value, -number))
    samples = answers[best].samples
    results: Results = {
        "candidate": "qat",
        "trials": trials,
        "validation_images": samples,
        "baseline_value": read_baseline(call, samples).value,
        "importance": importance(search.space, search.configs, scores),
        "epochs_trained": sum(epochs),
        "epochs_asked": sum(search.epochs),
        "search": search.kind,
        "choice": _choice(search, answers, best),
    }
    folder = Path(call.folder)
    shutil.copyfile(_weights_of(call, search.configs[best]), folder / CHECKPOINT)
    _delete_all_weights_but(call, search, best)
    write_table(folder, trials, ("state", "epochs", *columns_of(metric), "error"))
    return as_written(results, metric)


def _rows_of_trials(call: Call, search: Search, metric: Metric) -> tuple[list[Results], dict[int, Answers]]:
    """A row a trial, with its state, and the scores of each finished one."""
    stops, scores = search.stops(), search.scores()
    trials: list[Results] = []
    answers: dict[int, Answers] = {}
    for number, config in enumerate(search.configs):
        trial = call_of(call, config)
        curve = search.curves[number][: stops[number]]
        row: Results = {
            "number": number,
            "config": config,
            "curve": [metric.sign * quality for quality in curve],
            "epochs": len(curve),
            "value": None if (quality := scores[number]) is None else metric.sign * quality,
        }
        found = read_answers(trial, record_of(trial))
        if number in search.failed:
            row |= {"state": "failed", "error": search.failed[number]}
        elif stops[number] is not None or found is None:
            row |= {"state": "stopped"}
        else:
            answers[number] = found
            row |= {"state": "finished", "images": found.samples, "value_interval": list(found.interval())}
            row |= {"correct": int(found.right.sum())} if metric.is_top1 else {}
        trials.append(row)
    return trials, answers


def _delete_all_weights_but(call: Call, search: Search, best: int) -> None:
    """Delete the checkpoints of all trials, and the weights of all but the chosen one."""
    for number, config in enumerate(search.configs):
        trial = call_of(call, config)
        shutil.rmtree(trial.folder, ignore_errors=True)
        if number != best:
            record_of(trial).with_suffix(".pt").unlink(missing_ok=True)


def _weights_of(call: Call, config: Config) -> Path:
    """The weights of a finished trial; trained again if they are not there: another search may have dropped them."""
    trial = call_of(call, config)
    path = record_of(trial).with_suffix(".pt")
    if not path.is_file():
        record_of(trial).unlink()
        run_qat_trial(call, config, lambda row: None)
    return path


def _choice(search: Search, answers: Mapping[int, Answers], best: int) -> Results:
    """The chosen trial, and how it compares with the training as written, on the same images."""
    found: Results = {"number": best, "config": search.configs[best], "value": answers[best].value}
    count, metric = len(answers), answers[best].metric
    high, highest = ("higher", "highest") if metric.greater_is_better else ("lower", "lowest")
    if best == 0:
        why = f"the training as written: no other of {count} finished ones has a {high} {metric.name}"
        why += " on the validation images"
        return {**found, "gained": None, "gained_interval": None, "why": why}
    why = f"trial {best + 1}: the {highest} {metric.name} on the validation images of {count} finished trials"
    lost = answers[0].worse_than(answers[best]) if 0 in answers else None
    if lost is None:
        return {**found, "gained": None, "gained_interval": None, "why": why}
    # the best of many is compared: at a level for all of them at once (Bonferroni)
    least, most = lost.interval(together(count - 1))
    shown = high if least > 0 else f"not shown to be {high}"
    between = f"{difference(metric, least)} to {difference(metric, most)}"
    sign = "+" if lost.value >= 0 else ""
    gained = f"{sign}{difference(metric, lost.value)} {metric.unit}".strip()
    why += f"; {gained} ({between}, {shown}) against the training as written"
    return {**found, "gained": lost.value, "gained_interval": [least, most], "why": why}
