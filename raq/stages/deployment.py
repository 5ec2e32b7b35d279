"""The stages after quantization: compile and audit, evaluate the saved file, measure it.

Plain torch, never ray; torch is imported inside the functions.
"""

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raq.artifact.judgement import evidence_of
from raq.errors import StageError
from raq.experiment.schema import FILE_OF_RUNTIME, Bench
from raq.stages.call import (
    LOGITS,
    PREDICTIONS,
    PROGRAM,
    SAMPLES,
    WEIGHTS,
    Call,
    Progress,
    Results,
    dataset_of,
    example_of,
    parity_chain,
    trained_network,
)
from raq.store.files import file_digest, read_json

if TYPE_CHECKING:
    from raq.artifact.isolated import FreshProcess
    from raq.model.cache import Array
    from raq.model.dataset import Dataset
    from raq.model.parity import Chain

TRAIN_SAMPLE = 256


def _refuse_other_machine(planned: Mapping[str, Any]) -> None:
    """StageError if this is not the kind of machine that the plan is for."""
    from raq.environment import machine

    here = machine()
    if (here["cpu"], here["features"]) != (planned["cpu"], planned["features"]):
        raise StageError(
            f"this node has the CPU {here['cpu']!r}, and the artifact is for {planned['cpu']!r}",
            "give labels that only nodes of that kind have: resources.quantize.labels, resources.bench.labels",
        )


def lower_stage(call: Call, progress: Progress) -> Results:
    """Compile the program for the device, and audit what came out; what is required of it is checked by the driver."""
    from raq.artifact import executorch as pte
    from raq.artifact.audit import audit, float_weight_share
    from raq.artifact.inductor import load, lower, read
    from raq.artifact.sizes import float_copies, ledger
    from raq.quantize.arithmetic import NetworkMacs, network_macs
    from raq.quantize.convert import load_program, tensor_bytes
    from raq.quantize.export import export_network

    settings, path = call.settings, Path(call.folder) / FILE_OF_RUNTIME[call.settings["runtime"]]
    portable = settings["runtime"] == "executorch"
    if not portable:
        _refuse_other_machine(settings["machine"])
    chain = parity_chain(call, dataset_of(call))
    if "program" in call.inputs:
        program = load_program(Path(call.inputs["program"]) / PROGRAM)
        made = read_json(Path(call.inputs["program"]) / "record.json")["results"]
        counted, chosen = NetworkMacs(made["macs"], made["unknown_operators"]), made.get("float_layers", [])
        chain.go_on_from("converted", Path(call.inputs["program"]) / LOGITS)
    else:
        network = trained_network(call)
        program = export_network(network, example_of(call))
        counted, chosen = network_macs(network, example_of(call)), []
        chain.step("fp32", network)
    data = settings["data"]
    metadata = {
        "candidate": settings["candidate"],
        "model": settings["model"],
        "input": data["image_shape"],
        "mean": data["mean"],
        "std": data["std"],
        "classes": data["classes"],
        "macs": counted.total,
        "float_by_choice": chosen,
    }
    progress({"text": f"compiling for {settings['device']}"})
    if portable:
        most = settings["max_batch"]
        pte.lower_pte(program, path, metadata, most)
        chain.step("lowered", pte.in_parts(pte.load_pte(path, call.cpus), most))
    else:
        lower(program, path, metadata, settings["device"])
        chain.step("lowered", load(path), settings["device"])
    started = time.perf_counter()
    code = pte.name_scales(read(path), program) if portable else read(path)
    results: Results = {
        "runtime": settings["runtime"],
        "target": settings["device"],
        "size_bytes": path.stat().st_size,
        "weight_bytes": tensor_bytes(program),
        "sha256": file_digest(path),
        "ledger": ledger(code).as_record(),
        "float_copies": [] if settings["candidate"] == "fp32" else float_copies(program),
        "float_weight_share": float_weight_share(program, chosen),
        "macs": counted.total,
    }
    if settings["candidate"] == "fp32":
        results["int8_mac_share"] = 0.0
    elif settings["device"] != "cpu":  # there are no int8 kernels for these graphs: Inductor computes in float
        results |= {"int8_mac_share": 0.0, "note": "arithmetic between quantize and dequantize is float"}
    else:
        found = audit(program, code, counted)
        results |= {"int8_mac_share": found.int8_mac_share, "audit": found.as_record(), "float_by_choice": chosen}
    chain.seconds += time.perf_counter() - started
    return results | chain.finish(Path(call.folder) / LOGITS)


def evaluate_stage(call: Call, progress: Progress) -> Results:
    """Top-1 of the saved artifact on every test image, in a fresh process with torch (or ExecuTorch) alone.

    Of a candidate that cannot be lowered on this machine, the quantized program is evaluated, by torch's own kernels.
    """
    import numpy as np

    from raq.artifact.executorch import in_parts
    from raq.artifact.inductor import refuse_other_torch
    from raq.artifact.isolated import FreshProcess
    from raq.model.evaluation import logits, predict

    dataset = dataset_of(call)
    whole = dataset if call.settings["data"]["test_limit"] is None else dataset_of(call, test_limit=None)
    chain = parity_chain(call, whole)
    if "program" in call.inputs:
        return _evaluate_program(call, dataset, chain)
    runtime, device = call.settings["runtime"], call.settings["device"]
    if runtime == "inductor":
        _refuse_other_machine(call.settings["machine"])
    path = Path(call.inputs["artifact"]) / FILE_OF_RUNTIME[runtime]
    chain.go_on_from("lowered", Path(call.inputs["artifact"]) / LOGITS)
    if runtime == "inductor":
        refuse_other_torch(path)
    started = time.perf_counter()
    with FreshProcess(path, device, call.cpus) as process:
        chain.seconds += time.perf_counter() - started - process.told["load_s"]
        network = in_parts(process, call.settings["max_batch"]) if runtime == "executorch" else process
        chain.step("reloaded", network)
        predicted = predict(network, dataset)
        results: Results = {"load_s": process.told["load_s"], "resident_bytes": process.told["resident_bytes"]}
        if runtime == "inductor" and device == "cpu":
            results |= _executed(call, path, process)
        if call.settings["candidate"] == "fp32":  # does the test split score like the images trained on?
            chosen = np.arange(min(TRAIN_SAMPLE, len(dataset.train_labels)))
            found = logits(network, dataset, chosen, split="train").argmax(1)
            results |= {
                "train_correct": int((found == dataset.train_labels[chosen]).sum()),
                "train_images": len(chosen),
            }
    return {**_accuracy(call, dataset, predicted), **chain.finish(Path(call.folder) / LOGITS), **results}


def _executed(call: Call, path: Path, process: "FreshProcess") -> Results:
    """Which kernels run in the artifact's process, against what it should do according to its record."""
    from raq.artifact.executed import summary

    made = read_json(path.parent / "record.json")["results"]
    sizes = {math.prod(entry["shape"]) for entry in made["ledger"]["constants"] if len(entry["shape"]) > 1}
    layers = (made.get("audit") or {}).get("layers", [])
    traces = process.trace(call.settings["data"]["image_shape"], sizes)
    by_choice = evidence_of(made).by_choice if "audit" in made else 0.0
    return {**summary(traces, made["macs"], layers), "float_by_choice_share": by_choice}


def _evaluate_program(call: Call, dataset: "Dataset", chain: "Chain") -> Results:
    """Top-1 of a quantized program, and what its graph means to be int8, as no kernels are known."""
    from raq.artifact.audit import audit_graph, graph_share
    from raq.model.evaluation import predict
    from raq.quantize.arithmetic import NetworkMacs
    from raq.quantize.convert import load_program

    folder = Path(call.inputs["program"])
    program = load_program(folder / PROGRAM)
    chain.go_on_from("converted", folder / LOGITS)
    layers = audit_graph(program)
    made = read_json(folder / "record.json")["results"]
    results: Results = {
        "load_s": None,
        "resident_bytes": None,
        "graph_int8_mac_share": graph_share(program, NetworkMacs(made["macs"], made["unknown_operators"])),
        "float_layers": [{"name": x.name, "reason": x.reason} for x in layers if not x.annotated],
    }
    predicted = predict(program.module(), dataset)
    return {**_accuracy(call, dataset, predicted), **chain.finish(Path(call.folder) / LOGITS), **results}


def _accuracy(call: Call, dataset: "Dataset", predicted: "Array") -> Results:
    """Top-1 of the predicted classes, which are kept."""
    import numpy as np

    from raq.model.evaluation import top1

    right = predicted == dataset.test_labels
    np.save(Path(call.folder) / PREDICTIONS, np.stack([predicted, dataset.test_labels]).astype(np.int32))
    return {
        "top1": top1(predicted, dataset.test_labels),
        "correct": int(right.sum()),
        "test_images": len(right),
        "classes": call.settings["data"]["classes"],
    }


def bench_stage(call: Call, progress: Progress) -> Results:
    """Latency of every candidate's artifact beside the FP32 network in eager mode."""
    from raq.bench.latency import measure
    from raq.bench.launcher import ContenderSettings
    from raq.environment import available_cpus
    from raq.store.files import write_json

    settings = call.settings
    _refuse_other_machine(settings["machine"])
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
    for name, runtime in settings["runtimes"].items():
        path = str(Path(call.inputs[name]) / FILE_OF_RUNTIME[runtime])
        contenders.append(ContenderSettings(f"{name}/{runtime}", runtime, path=path, **shared))
    results = measure(contenders, protocol, cpus, lambda share, text: progress({"share": share, "text": text}))
    write_json(Path(call.folder) / SAMPLES, results.pop("samples"))
    return results
