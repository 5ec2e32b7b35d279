"""The stages that train: FP32, and quantization-aware with the conversion after it; and the user's own weights.

Plain torch, never ray; torch is imported inside the functions.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from raq.errors import UserError
from raq.experiment.training import Qat, Train
from raq.stages.call import (
    WEIGHTS,
    Call,
    Progress,
    Results,
    dataset_of,
    example_of,
    network_of,
    parity_chain,
    prepared_for_qat,
    trained_network,
)
from raq.stages.ptq import keep_program, macs_of
from raq.stages.transfer import send_checkpoint
from raq.store.files import file_digest

if TYPE_CHECKING:
    from torch import fx, nn

    from raq.model.checkpoints import TrainingContext, TrainingResult
    from raq.model.parity import Chain

PLAIN_SIZE = "set train.progressive: [] to train at the full size only"


def load_weights_stage(call: Call, progress: Progress) -> Results:
    """Check the user's weights against the network and keep a copy."""
    import torch

    from raq.model.zoo import load_weights

    assert call.weights_file is not None
    path = Path(call.weights_file)
    model = network_of(call, load_weights(path), str(path))
    if file_digest(path) != call.settings["weights"]:
        raise UserError(f"model.weights: {path} has changed since the plan was made", "run again")
    torch.save(model.state_dict(), Path(call.folder) / WEIGHTS)
    return _size_of_weights(model)


def train_stage(call: Call, progress: Progress) -> Results:
    """FP32 training in this process."""
    result = train_in(call, _local_context(call, progress))
    return finish_training(call, result)


def train_in(call: Call, context: "TrainingContext") -> "TrainingResult":
    """FP32 or quantization-aware training in the context given: a worker's part of it."""
    from raq.model.training import seed_everything, train

    dataset = dataset_of(call)
    seed = call.settings["seed"]
    seed_everything(seed)
    if call.kind == "train":
        settings = Train.model_validate(call.settings["train"])
        network = network_of(call)
        _check_sides(call, network, settings)
        return train(network, dataset, settings, seed, context)
    from raq.quantize.qat import qat_hooks

    qat = Qat.model_validate(call.settings["qat"])
    prepared = prepared_for_qat(call, qat)
    teacher = trained_network(call).to(context.device) if qat.distillation else None
    return train(prepared, dataset, qat, seed, context, qat_hooks(prepared, qat, teacher))


def _check_sides(call: Call, network: "nn.Module", settings: Train) -> None:
    """UserError if the network does not take the smaller images of a progressive recipe."""
    import torch

    from raq.model.training import image_side
    from raq.model.zoo import check_output

    channels, height, width = call.settings["data"]["image_shape"]
    if not settings.progressive or set(settings.progressive) == {1.0}:
        return
    if height != width:
        raise UserError(f"images are {height}x{width}, and train.progressive wants square ones", PLAIN_SIZE)
    side = image_side((min(settings.progressive),), 0, 1, width)
    try:
        check_output(
            network, torch.zeros(2, channels, side, side), call.settings["data"]["classes"], call.settings["model"]
        )
    except UserError as error:
        raise UserError(error.message, PLAIN_SIZE) from error


def finish_training(call: Call, result: "TrainingResult") -> Results:
    """What a finished FP32 training leaves: the weights of its best epoch, and its history."""
    import torch

    model = network_of(call, result.state, "the checkpoint")
    torch.save(model.state_dict(), Path(call.folder) / WEIGHTS)
    return {"history": result.history, "best_epoch": result.best_epoch, **_size_of_weights(model)}


def qat_stage(call: Call, progress: Progress) -> Results:
    """Quantization-aware training in this process, and conversion; after a sweep, the conversion of what it chose."""
    if "sweep" in call.inputs:
        return _finish_chosen(call)
    result = train_in(call, _local_context(call, progress))
    return finish_qat(call, result)


def _finish_chosen(call: Call) -> Results:
    """Convert the training that the sweep before has chosen."""
    from raq.model.checkpoints import read_result
    from raq.stages.qat_sweep import chosen_settings

    folder = Path(call.inputs["sweep"])
    chosen = replace(call, settings={**call.settings, "qat": chosen_settings(call).model_dump(mode="json")})
    return {"config": chosen.settings["qat"], **finish_qat(chosen, read_result(folder))}


def trained_graph(call: Call, result: "TrainingResult") -> "fx.GraphModule":
    """The graph with fake quantizers of a training's best epoch, in evaluation mode, its ranges fixed."""
    from torchao.quantization.pt2e import disable_observer

    from raq.quantize.qat import set_graph_mode

    prepared = prepared_for_qat(call, Qat.model_validate(call.settings["qat"]))
    prepared.load_state_dict(result.state)
    set_graph_mode(prepared, training=False, norms=False)
    prepared.apply(disable_observer)
    return prepared


def finish_qat(call: Call, result: "TrainingResult") -> Results:
    """Convert the best epoch of a finished quantization-aware training."""
    from raq.quantize.convert import convert

    chain = parity_chain(call, dataset_of(call))
    network = trained_network(call)
    chain.step("fp32", network)
    _step_prepared(call, chain)
    chain.begin_anew()  # training lies between
    prepared = trained_graph(call, result)
    chain.step("simulated", prepared)
    results = {**macs_of(call, network), **keep_program(call, convert(prepared, example_of(call)), chain)}
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


def _local_context(call: Call, progress: Progress) -> "TrainingContext":
    from raq.model.checkpoints import LocalContext

    def saved(folder: Path) -> None:
        send_checkpoint(call, folder)

    return LocalContext(Path(call.folder) / "checkpoint", call.device, progress, saved)


def _size_of_weights(model: "nn.Module") -> Results:
    tensors = model.state_dict().values()
    return {"weight_bytes": sum(tensor.numel() * tensor.element_size() for tensor in tensors)}
