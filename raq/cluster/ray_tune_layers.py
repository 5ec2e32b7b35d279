"""The search for layers to leave in float, by Ray Tune."""

from collections.abc import Sequence

from ray import tune

from raq.cluster.events import EventSender
from raq.cluster.ray_tune import EXPERIMENT, tune_all
from raq.stages.call import Call, Results
from raq.stages.layer_sweep import search_layers
from raq.stages.layer_trial import run_layer_trial
from raq.stages.transfer import fetch_trials, send_trials, trials_at_hand
from raq.stages.trials import metric_of, reported


def distributed_layer_sweep(call: Call, send: EventSender) -> Results:
    """The search of `call` for layers to leave in float, `call.workers` trials at a time with `call.cpus` CPUs each.

    First each layer alone and each left out, then the configurations that follow; Tune's own results of both lie in the
    stage's folder. Raises StageError if what the search stands on fails.
    """
    trainable = tune.with_parameters(_layer_trial, call=call)
    names = iter((EXPERIMENT, f"{EXPERIMENT}-mixed"))

    def run_all(configs: Sequence[dict[str, str]]) -> dict[int, str]:
        send_trials(call)
        failed = tune_all(call, send, trainable, configs, next(names))
        fetch_trials(call)
        return failed

    fetch_trials(call)
    return search_layers(call, send, run_all)


def _layer_trial(config: dict[str, str], call: Call) -> None:
    """What Tune runs in an actor."""
    call = trials_at_hand(call)
    found = run_layer_trial(call, config)
    send_trials(call)
    tune.report(reported(found, metric_of(call), "config"))
