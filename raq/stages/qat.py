"""The stage that trains with fake quantizers and converts what it trained.

Plain torch, never ray; torch is imported inside the functions.
"""

import copy
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from raq.stages.call import WEIGHTS, Call, Progress, Results
from raq.stages.inputs import example_input, parity_chain, read_dataset, read_trained_network, training_task
from raq.stages.programs import count_macs, keep_program
from raq.stages.transfer import local_context
from raq.stages.trials import keep_one
from raq.store.files import digest, file_digest
from raq.store.settings import QatSettings

if TYPE_CHECKING:
    from torch import fx

    from raq.model.checkpoints import TrainingContext, TrainingResult
    from raq.model.parity import Chain


@dataclass(frozen=True)
class _Graph:
    """What the graph with fake quantizers depends on, as a digest."""

    digest: str
    call: Call = field(compare=False)


def qat_stage(call: Call, progress: Progress) -> Results:
    """Quantization-aware training in this process, and conversion; after a sweep, the conversion of what it chose."""
    if "sweep" in call.inputs:
        return _finish_chosen(call)
    result = train_in(call, local_context(call, progress))
    return finish(call, result)


def train_in(call: Call, context: "TrainingContext") -> "TrainingResult":
    """Quantization-aware training in the context given: a worker's part of it."""
    from raq.model.loop import seed_everything
    from raq.model.training import train
    from raq.quantize.qat import qat_hooks

    dataset, asked = read_dataset(call), call.read(QatSettings)
    seed_everything(asked.seed)
    prepared = prepared_for_qat(call)
    teacher = read_trained_network(call).to(context.device) if asked.qat.distillation else None
    task = training_task(call, asked.qat.label_smoothing, teacher_alone=asked.qat.distillation == 1)
    hooks = qat_hooks(prepared, asked.qat, teacher, classes=asked.metric.needs_classes)
    return train(prepared, dataset, task, asked.qat, asked.seed, context, hooks)


def _finish_chosen(call: Call) -> Results:
    """Convert the training that the sweep before has chosen."""
    from raq.model.checkpoints import read_result
    from raq.stages.chosen import chosen_settings

    settings = chosen_settings(call).model_dump(mode="json")
    chosen = replace(call, settings={**call.settings, "qat": settings})
    return {"config": settings, **finish(chosen, read_result(call.input("sweep")))}


def trained_graph(call: Call, result: "TrainingResult") -> "fx.GraphModule":
    """The graph with fake quantizers of a training's best epoch, in evaluation mode, its ranges fixed."""
    from torchao.quantization.pt2e import disable_observer

    from raq.quantize.qat import set_graph_mode

    prepared = prepared_for_qat(call)
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

    untrained = prepared_for_qat(call)
    set_graph_mode(untrained, training=False, norms=False)
    untrained.apply(disable_observer)
    with without_fake_quantizers(untrained):
        chain.step("prepared", untrained)


def prepared_for_qat(call: Call) -> "fx.GraphModule":
    """The trained network's graph with fake quantizers, as new; made once for the trials and steps of one process."""
    asked = call.read(QatSettings)
    weights = file_digest(call.input("weights") / WEIGHTS)
    return copy.deepcopy(_prepared(_Graph(digest([weights, asked.qat.backend, asked.reduce_range, asked.model]), call)))


@keep_one
def _prepared(graph: _Graph) -> "fx.GraphModule":
    from raq.quantize.qat import prepare_qat

    call, asked = graph.call, graph.call.read(QatSettings)
    network, example = read_trained_network(call), example_input(call)
    return prepare_qat(network, example, asked.qat.backend, reduce_range=asked.reduce_range)
