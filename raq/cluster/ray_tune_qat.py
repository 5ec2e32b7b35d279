"""The search for a quantization-aware training, by Ray Tune: trials in its actors, or each of them Ray Train's.

Which trials there are, and which end early, is decided by `sweep.qat.Search` alone; Tune is asked to do just that, so
that a search comes to the same table however many trials run at a time, and after any interruption.
"""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from raq.cluster.events import EventSender
from raq.cluster.ray_train import PLACEMENT_GROUP, remove_group, train_on_workers, was_lost
from raq.cluster.ray_tune import (
    MAX_PASSES,
    Progress,
    refuse_lost_storage,
    resources_of,
    run_config,
    told_again,
    tune_config,
)
from raq.errors import RaqError, last_message
from raq.experiment.metric import Metric
from raq.experiment.sweep import Config
from raq.stages.call import Call, Results, trials_folder
from raq.stages.qat_sweep import (
    EpochRow,
    call_of,
    finish_qat_sweep,
    finish_trial,
    finished,
    new_search,
    prepare_qat_sweep,
    run_qat_trial,
)
from raq.stages.transfer import fetch_trials, read_marker, send_trials, store_of, trials_at_hand
from raq.stages.trials import metric_of
from raq.store.settings import TrainingSettings
from raq.store.views import view
from raq.sweep.qat import Search

VALIDATION = "validation"
REPORTED = ("epoch", "validation", "validation_top1", "loss", "images_per_s")


def distributed_qat_sweep(call: Call, send: EventSender) -> Results:
    """The search of `call`, on `call.workers` node slots of `call.cpus` CPUs each.

    A trial of one worker is a plain function in an actor of Tune, which does many; one of several is Ray Train's, for
    which Tune reserves nothing: no more run at a time than there are slots for all of their workers, so that none
    waits for another. Raises StageError if no trial finishes.
    """
    each = call.read(TrainingSettings).qat.workers
    assert isinstance(each, int), "an Experiment allows no other in a sweep"
    node_slots = call.workers // each
    search = new_search(call)  # of a pass: a new one is asked the same
    how = f"each {'a plain function' if each == 1 else f'{each} workers of Ray Train'} with {call.cpus} CPUs a worker"
    send({"text": f"{search.asked} trials, {node_slots} at a time, {how}"})
    fetch_trials(call)
    prepare_qat_sweep(call, send)
    send_trials(call)
    if each == 1:
        trainable, resources = tune.with_parameters(_trial, call=call), resources_of(call)
    else:
        # Tune wants a trial to take something: a byte; a share of a CPU would be missing for the workers
        trainable = tune.with_parameters(_trial_on_workers, call=call, send=send)
        resources = tune.PlacementGroupFactory([{"memory": 1}], bundle_label_selector=[dict(call.labels)])
    callbacks = [] if each == 1 else [_RemoveGroups(call)]
    for number in range(1, MAX_PASSES + 1):
        lost = tune_search(call, send, search, tune.with_resources(trainable, resources), node_slots, callbacks)
        fetch_trials(call)
        if not lost or number == MAX_PASSES:
            break
        send.notice(told_again(lost))
        search = new_search(call)
    results = finish_qat_sweep(call, search)
    store_of(call).delete_trainings(trials_folder(call).name)
    return results


def tune_search(
    call: Call,
    send: EventSender,
    search: Search,
    trainable: Any,
    node_slots: int,
    callbacks: Sequence[tune.Callback] = (),
) -> int:
    """Go through a search by Tune, at most `node_slots` trials at a time; what they report is then in `search`.

    Returns how many trials were lost with their process or their node, which is no result of theirs: the search, asked
    anew, does them again, and all that stood on them.

    trainable: takes a config, and reports "epoch" (from 0) and "validation", the metric, after each epoch.
    """
    metric = metric_of(call)
    suggestions = _Suggestions(search, node_slots, metric)
    tuner = tune.Tuner(
        trainable,
        tune_config=tune_config(
            suggestions,
            search.asked,
            VALIDATION,
            greater_is_better=metric.greater_is_better,
            reuse_actors=call.read(TrainingSettings).qat.workers == 1,
            scheduler=_Halving(search, suggestions, metric),
        ),
        run_config=run_config(call, [Progress(send, search.asked), *callbacks]),
    )
    lost = 0
    for result in tuner.fit():
        number = suggestions.number_of(result.config)
        refuse_lost_storage(call, result.error)
        if result.error is not None and number is not None:
            search.fail(number, last_message(result.error))
            lost += was_lost(result.error)
    return lost


def _trial(config: Config, call: Call) -> None:
    """What Tune runs in an actor: a training in this process."""
    call = trials_at_hand(call)
    run_qat_trial(call, config, _report)
    send_trials(call)


def _report(row: dict[str, Any]) -> None:
    tune.report({key: row.get(key) for key in REPORTED})


def _trial_on_workers(config: Config, call: Call, send: EventSender) -> None:
    """What Tune runs in an actor: a training by several workers of Ray Train, which has the resources."""
    call = trials_at_hand(call)
    trial = call_of(call, config)
    known = finished(trial)
    if known is not None:
        for row in known.history:
            _report(row)
        return
    finish_trial(trial, train_on_workers(trial, send, _report))
    send_trials(call)
    store_of(trial).delete_work(Path(trial.folder))


class _Suggestions(Searcher):
    """Hands Tune the trials of a search, at most `node_slots` at a time."""

    def __init__(self, search: Search, node_slots: int, metric: Metric) -> None:
        super().__init__(metric=VALIDATION, mode="max" if metric.greater_is_better else "min")
        self.search, self.node_slots = search, node_slots
        self.numbers: dict[str, int] = {}
        self.running: set[str] = set()

    def suggest(self, trial_id: str) -> Any:
        """The next trial; None if it has to wait; FINISHED after the last."""
        if self.search.exhausted:
            return Searcher.FINISHED
        number = None if len(self.running) >= self.node_slots else self.search.ask()
        if number is None:
            return None
        self.numbers[trial_id] = number
        self.running.add(trial_id)
        return dict(self.search.configs[number])

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """A place is free."""
        self.running.discard(trial_id)
        if error and trial_id in self.numbers:
            self.search.fail(self.numbers[trial_id], "")

    def number_of(self, config: Config | None) -> int | None:
        """The number of the trial that has this config."""
        return next((n for n, own in enumerate(self.search.configs) if own == config), None)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: a search that is interrupted is asked anew, and comes to the same."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""


class _Halving(FIFOScheduler):
    """Ends the trials that `Search` says end early."""

    def __init__(self, search: Search, suggestions: _Suggestions, metric: Metric) -> None:
        super().__init__()
        self.search, self.suggestions, self.judged_by = search, suggestions, metric  # `metric` is Tune's

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Whether the trial goes on."""
        number = self.suggestions.numbers[trial.trial_id]
        epoch = view(EpochRow, result, "a result of Tune")
        goes_on = self.search.tell(number, epoch.epoch, epoch.quality(self.judged_by))
        decision: str = TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP
        return decision


class _RemoveGroups(tune.Callback):
    """Removes the placement group of a trial's workers when it has ended: an early stop leaves it there."""

    def __init__(self, call: Call) -> None:
        self.call = call

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Remove the group that its workers have written down."""
        self._remove_group(trial)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The same."""
        self._remove_group(trial)

    def _remove_group(self, trial: Any) -> None:
        with suppress(OSError, ValueError, ray.exceptions.RayError, RaqError):
            remove_group(read_marker(call_of(self.call, trial.config), PLACEMENT_GROUP) or "")
