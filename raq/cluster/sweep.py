"""A sweep's trials on a cluster, by Ray Tune: as many at a time as there is room for, each actor doing many of them."""

from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.search.basic_variant import BasicVariantGenerator

from raq.errors import StageError
from raq.stages.call import Call, Results
from raq.stages.sweeping import finish_sweep, prepare_sweep, run_trial
from raq.sweeps import Config, config_digest, grid

EXPERIMENT = "tune"


def distributed_sweep(call: Call, board: Any) -> Results:
    """The sweep of `call`, `call.workers` trials at a time with `call.cpus` CPUs each.

    Every trial goes through Tune, those that an interrupted or smaller sweep has left too: they report at once, so that
    Tune's own results (`tune.ResultGrid` of the stage's folder `tune`) are complete. A trial that fails is tried once
    more and then told; the others go on. Raises StageError if none finishes.
    """
    prepare_sweep(call, lambda metrics: board.post.remote({"stage": call.name, "progress": metrics}))
    configs = grid(call.settings["ptq"], call.settings["sweep"])
    space = {key: tune.choice(list({c[key]: None for c in configs})) for key in configs[0]}
    trainable = tune.with_resources(
        tune.with_parameters(_trial, call=call), {"cpu": call.cpus, **({"gpu": call.gpus} if call.gpus else {})}
    )
    tuner = tune.Tuner(
        trainable,
        param_space=space,
        tune_config=tune.TuneConfig(
            search_alg=BasicVariantGenerator(points_to_evaluate=configs, max_concurrent=call.workers),
            num_samples=len(configs),
            reuse_actors=True,
            metric="top1",
            mode="max",
        ),
        run_config=tune.RunConfig(
            name=EXPERIMENT,
            storage_path=str(Path(call.folder).resolve()),
            failure_config=tune.FailureConfig(max_failures=1),
            callbacks=[_Progress(call.name, board, len(configs))],
            verbose=0,
        ),
    )
    found = tuner.fit()
    failed = {
        config_digest({key: result.config[key] for key in configs[0]}): _reason(result.error)
        for result in found
        if result.error is not None and result.config is not None
    }
    if len(failed) == len(configs):
        raise StageError(f"all {len(configs)} trials failed: {next(iter(failed.values()))}", "see the log")
    return finish_sweep(call, configs, failed)


def _trial(config: Config, call: Call) -> None:
    """What Tune runs in an actor."""
    tune.report({key: value for key, value in run_trial(call, config).items() if key != "config"})


def _reason(error: Any) -> str:
    """The last line of a trial's error that says something."""
    return next((line for line in reversed(str(error).strip().splitlines()) if line.strip()), type(error).__name__)


class _Progress(tune.Callback):
    """Tells the board how many trials have ended."""

    def __init__(self, stage: str, board: Any, count: int) -> None:
        self.stage, self.board, self.count, self.done = stage, board, count, 0

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """One more has finished."""
        self.done += 1
        metrics = {"share": self.done / self.count, "text": f"trial {self.done} of {self.count}"}
        self.board.post.remote({"stage": self.stage, "progress": metrics})
