"""Sweeps on a cluster, by Ray Tune: as many trials at a time as there is room for, each actor doing many of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.search import SearchAlgorithm, Searcher
from ray.tune.search.basic_variant import BasicVariantGenerator

from raq.cluster.events import EventSender
from raq.cluster.ray_train import was_lost
from raq.errors import StageError, last_message
from raq.stages.call import Call
from raq.stages.transfer import fetch_trials
from raq.stages.trials import metric_of
from raq.store.files import digest
from raq.store.object_storage import StorageError
from raq.store.sweep_results import written_name

EXPERIMENT = "tune"
MAX_PASSES = 3


def tune_all(
    call: Call,
    send: EventSender,
    trainable: Any,
    configs: Sequence[Mapping[str, Any]],
    name: str = EXPERIMENT,
) -> dict[int, str]:
    """Run all of these trials; what went wrong, by the number of the trial.

    They report their metric as a record of the sweep has it: "top1", or "value".

    Trials that were lost with their process or their node are done again, MAX_PASSES times in all: that is no result
    of theirs, unless it comes again and again. Those that have finished report at once.
    """
    for number in range(1, MAX_PASSES + 1):
        failed, lost = _tune_once(call, send, trainable, configs, name)
        if not lost or number == MAX_PASSES:
            break
        send.notice(told_again(lost))
        fetch_trials(call)
    if len(failed) == len(configs):
        raise StageError(f"all {len(configs)} trials failed: {next(iter(failed.values()))}", "see the log")
    return failed


def _tune_once(
    call: Call, send: EventSender, trainable: Any, configs: Sequence[Mapping[str, Any]], name: str
) -> tuple[dict[int, str], int]:
    """What went wrong, by the number of the trial; how many of those were lost."""
    metric = metric_of(call)
    space = {key: tune.choice(list({digest(c[key]): c[key] for c in configs}.values())) for key in configs[0]}
    search = BasicVariantGenerator(points_to_evaluate=list(configs), max_concurrent=call.workers)
    tuner = tune.Tuner(
        tune.with_resources(trainable, resources_of(call)),
        param_space=space,
        tune_config=tune_config(
            search, len(configs), written_name("value", metric), greater_is_better=metric.greater_is_better
        ),
        run_config=run_config(call, [Progress(send, len(configs))], name),
    )
    numbers = {digest(config): number for number, config in enumerate(configs)}
    failed, lost = {}, 0
    for result in tuner.fit():
        refuse_lost_storage(call, result.error)
        if result.error is not None and result.config is not None:
            failed[numbers[digest({key: result.config[key] for key in configs[0]})]] = last_message(result.error)
            lost += was_lost(result.error)
    return failed, lost


def resources_of(call: Call) -> Any:
    """What a trial takes, and on which nodes."""
    if call.labels:
        bundle = {"CPU": call.cpus, **({"GPU": call.gpus} if call.gpus else {})}
        return tune.PlacementGroupFactory([bundle], bundle_label_selector=[dict(call.labels)])
    return {"cpu": call.cpus, **({"gpu": call.gpus} if call.gpus else {})}


def tune_config(
    search: "Searcher | SearchAlgorithm",
    count: int,
    metric: str,
    *,
    greater_is_better: bool = True,
    reuse_actors: bool = True,
    scheduler: Any = None,
) -> tune.TuneConfig:
    """How Tune goes through `count` trials, their best one having the highest, or the lowest, `metric`."""
    return tune.TuneConfig(
        search_alg=search,
        scheduler=scheduler,
        num_samples=count,
        reuse_actors=reuse_actors,
        metric=metric,
        mode="max" if greater_is_better else "min",
    )


def run_config(call: Call, callbacks: Sequence[tune.Callback], name: str = EXPERIMENT) -> tune.RunConfig:
    """Where Tune keeps its own results: in the stage's folder. A trial that fails is tried once more."""
    return tune.RunConfig(
        name=name,
        storage_path=str(Path(call.folder).resolve()),
        failure_config=tune.FailureConfig(max_failures=1),
        callbacks=list(callbacks),
        verbose=0,
    )


def told_again(lost: int) -> str:
    """In words: so many trials were lost."""
    return f"trials that were lost with their process, {lost} of them, are done again"


def refuse_lost_storage(call: Call, error: Any) -> None:
    """StageError if a trial failed because the storage did not answer: that is no result of the trial's."""
    words = (StorageError.__name__, "AWS Error") if call.address else ()
    if error is not None and any(word in str(error) for word in words):
        raise StageError(f"a trial failed: {last_message(error)}", "finished trials are kept; run again")


class Progress(tune.Callback):
    """Tells how many trials have ended."""

    def __init__(self, send: EventSender, count: int) -> None:
        self.send, self.count, self.done = send, count, 0

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """One more has finished."""
        self.done += 1
        self.send({"share": self.done / self.count, "text": f"trial {self.done} of {self.count}"})

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """One more has failed for good."""
        self.on_trial_complete(iteration, trials, trial)
