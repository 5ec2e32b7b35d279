"""The stages after quantization: compile and audit, evaluate the saved file, measure it.

Plain torch, never ray; torch is imported inside the functions.
"""

import time
from pathlib import Path

from raq.errors import StageError
from raq.experiment import Bench
from raq.stages.call import (
    ARTIFACT,
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
    file_digest,
    parity_chain,
    trained_network,
)

TRAIN_SAMPLE = 256


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
    chain = parity_chain(call, dataset_of(call))
    if "program" in call.inputs:
        program = load_program(Path(call.inputs["program"]) / PROGRAM)
        chain.go_on_from("converted", Path(call.inputs["program"]) / LOGITS)
    else:
        network = trained_network(call)
        program = export_network(network, example_of(call))
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

    dataset = dataset_of(call)
    device, path = call.settings["device"], Path(call.inputs["artifact"]) / ARTIFACT
    whole = dataset if call.settings["data"]["test_limit"] is None else dataset_of(call, test_limit=None)
    chain = parity_chain(call, whole)
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
