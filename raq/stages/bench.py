"""The stage that measures latency.

Plain torch, never ray; torch is imported inside the functions.
"""

from dataclasses import replace
from pathlib import Path

from raq.artifact.runtimes import RUNTIMES
from raq.errors import StageError
from raq.stages.call import SAMPLES, WEIGHTS, Call, Progress, Results, refuse_other_machine
from raq.store.settings import BenchSettings


def bench_stage(call: Call, progress: Progress) -> Results:
    """Latency of every candidate's artifact beside the FP32 network in eager mode."""
    from raq.bench.latency import EVERY_SAMPLE, measure
    from raq.bench.messages import ContenderSettings
    from raq.bench.on_gpu import ways
    from raq.bench.profile import profiles
    from raq.bench.throughput import throughputs
    from raq.environment import available_cpus
    from raq.store.files import write_json

    settings = call.read(BenchSettings)
    refuse_other_machine(settings.machine)
    protocol = settings.bench
    cpus = available_cpus()[: call.cpus]
    threads = protocol.threads or len(cpus)
    eager = ContenderSettings(
        candidate="fp32",
        runtime="eager",
        device=settings.device,
        path=str(call.input("weights") / WEIGHTS),
        inputs=settings.inputs,
        threads=threads,
        model=settings.model,
        classes=settings.classes,
        output=settings.output,
        working_directory=call.working_directory,
        fp32=True,
    )
    contenders = [eager]
    for name, runtime in settings.runtimes.items():
        path = str(call.input(name) / RUNTIMES[runtime].file_name)
        contenders.append(
            replace(eager, candidate=name, runtime=runtime, path=path, fp32=settings.kinds[name] == "fp32")
        )

    def tell(share: float, text: str) -> None:
        progress({"share": share, "text": text})

    results = measure(contenders := ways(contenders, protocol), protocol, cpus, tell)
    write_json(Path(call.folder) / SAMPLES, results.pop(EVERY_SAMPLE))
    if protocol.streams is not None and settings.device == "cpu":
        try:
            results["throughput"] = throughputs(contenders, protocol, cpus, tell)
        except StageError as error:  # what was measured is worth more
            results["no_throughput"] = f"{error.message}; {error.hint}"
    progress({"text": "profiling"})
    try:
        return {**results, "profiles": profiles(contenders[1:], results, protocol.batch_sizes)}
    except StageError as error:  # what was measured is worth more
        return {**results, "profiles": [], "not_profiled": f"{error.message}; {error.hint}"}
