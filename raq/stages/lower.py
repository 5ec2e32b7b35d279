"""The stages after quantization: compile and audit, evaluate the saved file, measure it.

Plain torch, never ray; torch is imported inside the functions.
"""

import time
from pathlib import Path

from raq.artifact.runtimes import RUNTIMES, in_parts
from raq.lazy import resolve
from raq.stages.call import LOGITS, PROGRAM, Call, Progress, Results, refuse_other_machine
from raq.stages.inputs import example_input, parity_chain, read_dataset, read_trained_network
from raq.store.files import file_digest, read_json


def lower_stage(call: Call, progress: Progress) -> Results:
    """Compile the program for the device, and audit what came out; what is required of it is checked by the driver."""
    from raq.artifact.audit import audit, float_weight_share
    from raq.artifact.sizes import float_copies, ledger
    from raq.quantize.arithmetic import NetworkMacs, network_macs
    from raq.quantize.convert import load_program, tensor_bytes
    from raq.quantize.export import export_network

    settings, runtime = call.settings, RUNTIMES[call.settings["runtime"]]
    path = Path(call.folder) / runtime.file_name
    if runtime.is_native:
        refuse_other_machine(settings["machine"])
    chain = parity_chain(call, read_dataset(call))
    if "program" in call.inputs:
        program = load_program(Path(call.inputs["program"]) / PROGRAM)
        made = read_json(Path(call.inputs["program"]) / "record.json")["results"]
        counted, chosen = NetworkMacs(made["macs"], made["unknown_operators"]), made.get("float_layers", [])
        chain.go_on_from("converted", Path(call.inputs["program"]) / LOGITS)
    else:
        network = read_trained_network(call)
        program = export_network(network, example_input(call))
        counted, chosen = network_macs(network, example_input(call)), []
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
    most = settings["max_batch"] if runtime.has_max_batch else None
    resolve(runtime.lower)(program, path, metadata, settings["device"], most)
    lowered = resolve(runtime.load)(path, call.cpus)
    chain.step("lowered", lowered if most is None else in_parts(lowered, most), settings["device"])
    started = time.perf_counter()
    code = resolve(runtime.read)(path)
    if runtime.name_scales is not None:
        code = resolve(runtime.name_scales)(code, program)
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
