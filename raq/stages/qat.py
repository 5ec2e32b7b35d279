"""The stage that trains with fake quantizers and converts what it trained.

Plain torch, never ray; torch is imported inside the functions.
"""

import copy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raq.experiment.training import Qat
from raq.stages.call import WEIGHTS, Call, Progress, Results
from raq.stages.inputs import example_input, parity_chain, read_dataset, read_trained_network
from raq.stages.programs import count_macs, keep_program
from raq.stages.transfer import local_context
from raq.store.files import digest, file_digest

if TYPE_CHECKING:
    from torch import fx

    from raq.model.checkpoints import TrainingContext, TrainingResult
    from raq.model.parity import Chain

_prepared: dict[str, Any] = {}  # the last graph that `prepared_for_qat` made, by what it depends on


def qat_stage(call: Call, progress: Progress) -> Results:
    """Quantization-aware training in this process, and conversion; after a sweep, the conversion of what it chose."""
    if "sweep" in call.inputs:
        return _finish_chosen(call)
    result = train_in(call, local_context(call, progress))
    return finish(call, result)


def train_in(call: Call, context: "TrainingContext") -> "TrainingResult":
    """Quantization-aware training in the context given: a worker's part of it."""
    from raq.model.training import seed_everything, train
    from raq.quantize.qat import qat_hooks

    dataset, seed = read_dataset(call), call.settings["seed"]
    seed_everything(seed)
    settings = Qat.model_validate(call.settings["qat"])
    prepared = prepared_for_qat(call, settings)
    teacher = read_trained_network(call).to(context.device) if settings.distillation else None
    return train(prepared, dataset, settings, seed, context, qat_hooks(prepared, settings, teacher))


def _finish_chosen(call: Call) -> Results:
    """Convert the training that the sweep before has chosen."""
    from raq.model.checkpoints import read_result
    from raq.stages.chosen import chosen_settings

    folder = Path(call.inputs["sweep"])
    chosen = replace(call, settings={**call.settings, "qat": chosen_settings(call).model_dump(mode="json")})
    return {"config": chosen.settings["qat"], **finish(chosen, read_result(folder))}


def trained_graph(call: Call, result: "TrainingResult") -> "fx.GraphModule":
    """The graph with fake quantizers of a training's best epoch, in evaluation mode, its ranges fixed."""
    from torchao.quantization.pt2e import disable_observer

    from raq.quantize.qat import set_graph_mode

    prepared = prepared_for_qat(call, Qat.model_validate(call.settings["qat"]))
    prepared.load_state_dict(result.state)
    set_graph_mode(prepared, training=False, norms=False)
    prepared.apply(disable_observer)
    return prepared


def finish(call: Call, result: "TrainingResult") -> Results:
    """Convert the best epoch of a finished quantization-aware training."""
    from raq.quantize.convert import convert

    chain = parity_chain(call, read_dataset(call))
    network = read_trained_network(call)
    chain.step("fp32", network)
    _step_prepared(call, chain)
    chain.begin_anew()  # training lies between
    prepared = trained_graph(call, result)
    chain.step("simulated", prepared)
    results = {**count_macs(call, network), **keep_program(call, convert(prepared, example_input(call)), chain)}
    return {"history": result.history, "best_epoch": result.best_epoch, **results}


def _step_prepared(call: Call, chain: "Chain") -> None:
    """The graph as it was before training, its fake quantizers off: it must be the FP32 network."""
    from torchao.quantization.pt2e import disable_observer

    from raq.quantize.qat import set_graph_mode, without_fake_quantizers

    untrained = prepared_for_qat(call, Qat.model_validate(call.settings["qat"]))
    set_graph_mode(untrained, training=False, norms=False)
    untrained.apply(disable_observer)
    with without_fake_quantizers(untrained):
        chain.step("prepared", untrained)


def prepared_for_qat(call: Call, settings: Qat) -> Any:
    """The trained network's graph with fake quantizers, as new; made once for the trials and steps of one process."""
    from raq.quantize.qat import prepare_qat

    weights, reduce_range = Path(call.inputs["weights"]), call.settings["reduce_range"]
    key = digest([file_digest(weights / WEIGHTS), settings.backend, reduce_range, call.settings["model"]])
    if key not in _prepared:
        made = prepare_qat(read_trained_network(call), example_input(call), settings.backend, reduce_range=reduce_range)
        _prepared.clear()
        _prepared[key] = made
    return copy.deepcopy(_prepared[key])
