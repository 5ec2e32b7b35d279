"""The stage that measures latency.

Plain torch, never ray; torch is imported inside the functions.
"""

from pathlib import Path

from raq.artifact.runtimes import RUNTIMES
from raq.experiment.measurement import Bench
from raq.stages.call import SAMPLES, WEIGHTS, Call, Progress, Results, refuse_other_machine


def bench_stage(call: Call, progress: Progress) -> Results:
    """Latency of every candidate's artifact beside the FP32 network in eager mode."""
    from raq.bench.latency import measure
    from raq.bench.launcher import ContenderSettings
    from raq.environment import available_cpus
    from raq.store.files import write_json

    settings = call.settings
    refuse_other_machine(settings["machine"])
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
        path = str(Path(call.inputs[name]) / RUNTIMES[runtime].file_name)
        contenders.append(ContenderSettings(f"{name}/{runtime}", runtime, path=path, **shared))
    results = measure(contenders, protocol, cpus, lambda share, text: progress({"share": share, "text": text}))
    write_json(Path(call.folder) / SAMPLES, results.pop("samples"))
    return results
