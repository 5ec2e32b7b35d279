"""What each kind of stage does: folders and values in, files in its work folder and plain results out.

Plain torch, never ray, so that a whole experiment can be run, tested and profiled without a cluster. torch is imported
inside the functions: the driver reads this module's types without paying for it.
"""

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raq.errors import StageError, UserError
from raq.experiment import Bench, Data, Ptq, Qat, Train

if TYPE_CHECKING:
    from torch import Tensor, nn

    from raq.model.data import Dataset
    from raq.model.training import TrainingContext, TrainingResult
    from raq.quantize.parity import Chain

PLAIN_SIZE = "set train.progressive: [] to train at the full size only"
Progress = Callable[[dict[str, Any]], None]
Results = dict[str, Any]
WEIGHTS, PROGRAM, ARTIFACT, PREDICTIONS, SAMPLES, LOGITS = (
    "weights.pt",
    "program.pt2",
    "artifact.pt2",
    "predictions.npy",
    "samples.json",
    "logits.npy",  # of the last step of the parity chain that a stage did
)
TRAIN_SAMPLE = 256


@dataclass(frozen=True)
class Call:
    """A stage as its actor gets it: plain values and absolute paths.

    inputs: role -> folder of the finished stage; folder: where this one works; data_root, weights_file and
    working_directory: where things lie, which no fingerprint covers; cpus: how many CPUs are its own.
    """

    name: str
    kind: str
    settings: dict[str, Any]
    inputs: Mapping[str, str]
    folder: str
    data_root: str | None
    weights_file: str | None
    working_directory: str | None
    cpus: int
    gpus: int
    workers: int

    @property
    def device(self) -> str:
        """The device that training uses."""
        return "cuda" if self.gpus else "cpu"


def run_stage(call: Call, progress: Progress) -> Results:
    """Do one stage in this process; its results are plain values, its files are in `call.folder`."""
    import torch

    torch.set_num_threads(call.cpus)
    Path(call.folder).mkdir(parents=True, exist_ok=True)
    return STAGES[call.kind](call, progress)


def load_weights_stage(call: Call, progress: Progress) -> Results:
    """Check the user's weights against the network and keep a copy."""
    import torch

    from raq.model.zoo import load_weights

    assert call.weights_file is not None
    path = Path(call.weights_file)
    model = _network(call, load_weights(path), str(path))
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

    dataset = _dataset(call)
    seed = call.settings["seed"]
    seed_everything(seed)
    if call.kind == "train":
        settings = Train.model_validate(call.settings["train"])
        network = _network(call)
        _check_sides(call, network, settings)
        return train(network, dataset, settings, seed, context)
    from raq.quantize.qat import qat_hooks

    qat = Qat.model_validate(call.settings["qat"])
    prepared = _prepared_for_qat(call, qat)
    return train(prepared, dataset, qat, seed, context, qat_hooks(prepared, qat))


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

    model = _network(call, result.state, "the checkpoint")
    torch.save(model.state_dict(), Path(call.folder) / WEIGHTS)
    return {"history": result.history, "best_epoch": result.best_epoch, **_size_of_weights(model)}


def ptq_stage(call: Call, progress: Progress) -> Results:
    """Export, prepare, calibrate, convert."""
    from raq.quantize.conversion import convert
    from raq.quantize.ptq import calibrate, prepare, simulated

    settings = Ptq.model_validate(call.settings["ptq"])
    dataset = _dataset(call)
    network = _trained(call)
    example = _example(call)
    prepared = prepare(
        network, example, settings.backend, settings.calibration, reduce_range=call.settings["reduce_range"]
    )
    size = settings.calibration.size
    calibrate(
        prepared,
        dataset,
        settings.calibration,
        call.settings["seed"],
        lambda done: progress({"share": done / size, "text": f"calibrating, {done} of {size} images"}),
    )
    chain = _chain(call, dataset)
    chain.step("fp32", network)
    with simulated(prepared) as as_integers:
        chain.step("simulated", as_integers)
    program = convert(prepared, example)
    return _keep_program(call, program, chain)


def qat_stage(call: Call, progress: Progress) -> Results:
    """Quantization-aware training in this process, and conversion."""
    result = train_in(call, _local_context(call, progress))
    return finish_qat(call, result)


def finish_qat(call: Call, result: "TrainingResult") -> Results:
    """Convert the best epoch of a finished quantization-aware training."""
    from torchao.quantization.pt2e import disable_observer

    from raq.quantize.conversion import convert
    from raq.quantize.qat import set_graph_mode

    prepared = _prepared_for_qat(call, Qat.model_validate(call.settings["qat"]))
    prepared.load_state_dict(result.state)
    set_graph_mode(prepared, training=False, norms=False)
    prepared.apply(disable_observer)
    chain = _chain(call, _dataset(call))
    chain.step("simulated", prepared)
    results = _keep_program(call, convert(prepared, _example(call)), chain)
    return {"history": result.history, "best_epoch": result.best_epoch, **results}


def lower_stage(call: Call, progress: Progress) -> Results:
    """Compile the program for the device, and audit what came out; what is required of it is checked by the driver."""
    from raq.environment import machine
    from raq.quantize.artifact import load, lower
    from raq.quantize.audit import audit
    from raq.quantize.capture import export_network
    from raq.quantize.conversion import load_program, tensor_bytes
    from raq.quantize.generated import read_package
    from raq.quantize.ledger import float_copies, ledger

    settings, path = call.settings, Path(call.folder) / ARTIFACT
    here, planned = machine(), settings["machine"]
    if (here["cpu"], here["features"]) != (planned["cpu"], planned["features"]):
        raise StageError(
            f"this node has the CPU {here['cpu']!r}, and the artifact is for {planned['cpu']!r}",
            "give resources that only nodes of that kind have",
        )
    chain = _chain(call, _dataset(call))
    if "program" in call.inputs:
        program = load_program(Path(call.inputs["program"]) / PROGRAM)
        chain.go_on_from("converted", Path(call.inputs["program"]) / LOGITS)
    else:
        network = _trained(call)
        program = export_network(network, _example(call))
        chain.step("fp32", network)
    data = settings["data"]
    metadata = {
        "candidate": settings["candidate"],
        "model": settings["model"],
        "input": data["image_shape"],
        "mean": data["mean"],
        "std": data["std"],
        "classes": data["classes"],
    }
    progress({"text": f"compiling for {settings['device']}"})
    lower(program, path, metadata, settings["device"])
    chain.step("lowered", load(path), settings["device"])
    started = time.perf_counter()
    code = read_package(path)
    results: Results = {
        "runtime": settings["runtime"],
        "target": settings["device"],
        "size_bytes": path.stat().st_size,
        "weight_bytes": tensor_bytes(program),
        "sha256": file_digest(path),
        "ledger": ledger(code).as_record(),
        "float_copies": [] if settings["candidate"] == "fp32" else float_copies(program),
    }
    if settings["candidate"] == "fp32":
        results["int8_mac_share"] = 0.0
    elif settings["device"] != "cpu":  # there are no int8 kernels for these graphs: Inductor computes in float
        results |= {"int8_mac_share": 0.0, "note": "arithmetic between quantize and dequantize is float"}
    else:
        found = audit(program, code)
        results |= {"int8_mac_share": found.int8_mac_share, "audit": found.as_record()}
    chain.seconds += time.perf_counter() - started
    return results | chain.finish(Path(call.folder) / LOGITS)


def evaluate_stage(call: Call, progress: Progress) -> Results:
    """Top-1 of the saved artifact on every test image, in a fresh process with torch alone."""
    import numpy as np

    from raq.model.evaluation import logits, predict, top1
    from raq.quantize.artifact import refuse_other_torch
    from raq.quantize.fresh import FreshProcess

    dataset = _dataset(call)
    device, path = call.settings["device"], Path(call.inputs["artifact"]) / ARTIFACT
    whole = dataset if call.settings["data"]["test_limit"] is None else _dataset(call, test_limit=None)
    chain = _chain(call, whole)
    chain.go_on_from("lowered", Path(call.inputs["artifact"]) / LOGITS)
    refuse_other_torch(path)
    started = time.perf_counter()
    with FreshProcess(path, device, call.cpus) as network:
        chain.seconds += time.perf_counter() - started - network.told["load_s"]
        chain.step("reloaded", network)
        predicted = predict(network, dataset)
        results: Results = {"load_s": network.told["load_s"], "resident_bytes": network.told["resident_bytes"]}
        if call.settings["candidate"] == "fp32":  # does the test split score like the images trained on?
            chosen = np.arange(min(TRAIN_SAMPLE, len(dataset.train_labels)))
            found = logits(network, dataset, chosen, split="train").argmax(1)
            results |= {
                "train_correct": int((found == dataset.train_labels[chosen]).sum()),
                "train_images": len(chosen),
            }
    right = predicted == dataset.test_labels
    np.save(Path(call.folder) / PREDICTIONS, np.stack([predicted, dataset.test_labels]).astype(np.int32))
    return {
        "top1": top1(predicted, dataset.test_labels),
        "correct": int(right.sum()),
        "test_images": len(right),
        "classes": call.settings["data"]["classes"],
        **chain.finish(Path(call.folder) / LOGITS),
        **results,
    }


def bench_stage(call: Call, progress: Progress) -> Results:
    """Latency of every candidate's artifact beside the FP32 network in eager mode."""
    from raq.bench.latency import measure
    from raq.bench.machine import available_cpus
    from raq.bench.processes import ContenderSettings
    from raq.records import write_json

    settings = call.settings
    protocol = Bench.model_validate(settings["bench"])
    cpus = available_cpus()[: call.cpus]
    threads = protocol.threads or len(cpus)
    shared = {
        "device": settings["device"],
        "image_shape": tuple(settings["image_shape"]),
        "threads": threads,
        "model": settings["model"],
        "classes": settings["classes"],
        "working_directory": call.working_directory,
    }
    contenders = [ContenderSettings("fp32/eager", "eager", path=str(Path(call.inputs["weights"]) / WEIGHTS), **shared)]
    contenders += [
        ContenderSettings(f"{role}/inductor", "inductor", path=str(Path(folder) / ARTIFACT), **shared)
        for role, folder in call.inputs.items()
        if role != "weights"
    ]
    results = measure(contenders, protocol, cpus, lambda share, text: progress({"share": share, "text": text}))
    write_json(Path(call.folder) / SAMPLES, results.pop("samples"))
    return results


STAGES: dict[str, Callable[[Call, Progress], Results]] = {
    "weights": load_weights_stage,
    "train": train_stage,
    "ptq": ptq_stage,
    "qat": qat_stage,
    "lower": lower_stage,
    "evaluate": evaluate_stage,
    "bench": bench_stage,
}


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _chain(call: Call, dataset: "Dataset") -> "Chain":
    """The parity chain's part of this stage."""
    from raq.quantize.parity import Chain

    return Chain(dataset, call.settings["parity_images"], call.settings["seed"])


def _dataset(call: Call, **other: Any) -> "Dataset":
    from raq.model.data import load_dataset

    chosen = {key: value for key, value in call.settings["data"].items() if key in Data.model_fields}
    data = Data.model_validate({**chosen, "root": call.data_root, **other})
    return load_dataset(data, call.working_directory, call.settings["data"]["digest"])


def _network(call: Call, weights: "Mapping[str, Tensor] | None" = None, source: str = "") -> "nn.Module":
    from raq.model.zoo import build_model, check_output, put_weights

    name = call.settings["model"]
    classes = call.settings["data"]["classes"]
    model = build_model(name, classes, call.working_directory)
    check_output(model, _example(call), classes, name)
    if weights is not None:
        put_weights(model, weights, name, source)
    return model


def _trained(call: Call) -> "nn.Module":
    """The network with the weights of the stage before, in evaluation mode."""
    from raq.model.zoo import load_weights

    path = Path(call.inputs["weights"]) / WEIGHTS
    return _network(call, load_weights(path), str(path)).eval()


def _prepared_for_qat(call: Call, settings: Qat) -> Any:
    from raq.quantize.qat import prepare_qat

    return prepare_qat(_trained(call), _example(call), settings.backend, reduce_range=call.settings["reduce_range"])


def _example(call: Call) -> "Tensor":
    """Two images of the right shape, for export."""
    import torch

    return torch.zeros(2, *call.settings["data"]["image_shape"])


def _local_context(call: Call, progress: Progress) -> "TrainingContext":
    from raq.model.training import LocalContext

    return LocalContext(Path(call.folder) / "checkpoint", call.device, progress)


def _keep_program(call: Call, program: Any, chain: "Chain") -> Results:
    from raq.quantize.conversion import save_program, tensor_bytes

    chain.step("converted", program.module())
    save_program(program, Path(call.folder) / PROGRAM)
    return {"weight_bytes": tensor_bytes(program), **chain.finish(Path(call.folder) / LOGITS)}


def _size_of_weights(model: "nn.Module") -> Results:
    tensors = model.state_dict().values()
    return {"weight_bytes": sum(tensor.numel() * tensor.element_size() for tensor in tensors)}
