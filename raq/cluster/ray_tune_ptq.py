"""The sweep of calibrations, by Ray Tune."""

from ray import tune

from raq.cluster.events import EventSender
from raq.cluster.ray_tune import tune_all
from raq.experiment.sweep import Config
from raq.stages.call import Call, Results
from raq.stages.ptq_sweep import all_configs, finish_ptq_sweep, prepare_ptq_sweep, run_ptq_trial
from raq.stages.transfer import fetch_trials, send_trials, trials_at_hand
from raq.store.files import short_digest


def distributed_ptq_sweep(call: Call, send: EventSender) -> Results:
    """The calibrations of `call`, `call.workers` at a time with `call.cpus` CPUs each.

    Every trial goes through Tune, those that an interrupted or smaller sweep has left too: they report at once, so that
    Tune's own results (`tune.ResultGrid` of the stage's folder `tune`) are complete. A trial that fails is tried once
    more and then reported; the others go on. Raises StageError if none finishes.
    """
    fetch_trials(call)
    prepare_ptq_sweep(call, send)
    send_trials(call)
    configs = all_configs(call)
    failed = tune_all(call, send, tune.with_parameters(_trial, call=call), configs)
    fetch_trials(call)
    return finish_ptq_sweep(call, configs, {short_digest(configs[n]): error for n, error in failed.items()})


def _trial(config: Config, call: Call) -> None:
    """What Tune runs in an actor."""
    call = trials_at_hand(call)
    found = run_ptq_trial(call, config)
    send_trials(call)
    tune.report({key: value for key, value in found.items() if key != "config"})
