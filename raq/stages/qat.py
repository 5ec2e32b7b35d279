"""The stage that trains with fake quantizers and converts what it trained.

Plain torch, never ray; torch is imported inside the functions.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

from raq.stages.call import Call, Progress, Results
from raq.stages.inputs import example_input, parity_chain, read_dataset, read_trained_network, training_task
from raq.stages.programs import count_macs, keep_program
from raq.stages.qat_start import graph_to_train, hooks_of, how_it_starts, rest, step_prepared, to_convert
from raq.stages.transfer import local_context
from raq.store.settings import QatSettings

if TYPE_CHECKING:
    from torch import fx

    from raq.model.checkpoints import TrainingContext, TrainingResult


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

    dataset, asked = read_dataset(call), call.read(QatSettings)
    seed_everything(asked.seed)
    graph, share = graph_to_train(call), asked.qat.share_distilled
    teacher = read_trained_network(call).to(context.device) if share else None
    task = training_task(call, asked.qat.label_smoothing, teacher_alone=share == 1)
    return train(graph, dataset, task, asked.qat, asked.seed, context, hooks_of(call, graph, teacher))


def _finish_chosen(call: Call) -> Results:
    """Convert the training that the sweep before has chosen."""
    from raq.model.checkpoints import read_result
    from raq.stages.chosen import chosen_settings

    settings = chosen_settings(call).model_dump(mode="json")
    chosen = replace(call, settings={**call.settings, "qat": settings})
    return {"config": settings, **finish(chosen, read_result(call.input("sweep")))}


def trained_graph(call: Call, result: "TrainingResult") -> "fx.GraphModule":
    """The graph of a training's best epoch, rounding, in evaluation mode, its ranges fixed."""
    graph = graph_to_train(call)
    graph.load_state_dict(result.state)
    rest(call, graph)
    return graph


def finish(call: Call, result: "TrainingResult") -> Results:
    """Convert the best epoch of a finished quantization-aware training."""
    from raq.quantize.convert import convert

    chain = parity_chain(call, read_dataset(call))
    network = read_trained_network(call)
    chain.step("fp32", network)
    step_prepared(call, chain)
    chain.begin_anew()  # training lies between
    trained = trained_graph(call, result)
    chain.step("simulated", trained)
    program = convert(to_convert(call, trained), example_input(call))
    results = {**how_it_starts(call), **count_macs(call, network), **keep_program(call, program, chain)}
    return {"history": result.history, "best_epoch": result.best_epoch, **results}
