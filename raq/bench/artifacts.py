"""`raq bench`: its options, and the latency of any artifacts side by side, against the first of them.

An artifact is native code: measuring it loads and runs it.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from raq.artifact.metadata import LONGEST_SIDE, Metadata
from raq.artifact.runtimes import read_metadata, runtime_of_file
from raq.bench.latency import measure
from raq.bench.messages import ContenderSettings
from raq.bench.on_gpu import ways
from raq.bench.throughput import stream_count, throughputs
from raq.environment import available_cpus
from raq.errors import StageError, UserError, first_problem
from raq.experiment.inputs import Inputs, image_input, in_words
from raq.experiment.measurement import Bench

BENCH_OPTIONS = {
    "protocol": "--protocol", "batch_sizes": "--batch-size", "precision": "--precision", "budget_s": "--budget",
    "threads": "--threads", "streams": "--streams",
}  # fmt: skip


def bench_settings(**given: Any) -> Bench:
    """The protocol of `raq bench` from its options, None where one was not given; UserError for a wrong one."""
    named = {key: value for key, value in given.items() if value is not None}
    try:
        return Bench.model_validate(named)
    except ValidationError as error:
        place, what = first_problem(error)
        option = BENCH_OPTIONS.get(place.partition(".")[0], "")
        message = what.removeprefix("Value error, ")
        raise UserError(f"{option}: {message}" if option else message, "see 'raq bench --help'") from None


def image_inputs(text: str | None) -> Inputs | None:
    """Images of the shape "C,H,W"; UserError if it is something else."""
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    sizes = tuple(int(part) for part in parts if part.isascii() and part.isdigit() and len(part) < 6)
    if len(parts) != 3 or len(sizes) != 3 or not all(0 < size <= LONGEST_SIDE for size in sizes):
        raise UserError(f"--input-shape {text!r}: not the shape of an image", "write it like --input-shape 3,224,224")
    return (image_input(sizes),)


def bench_artifacts(
    paths: Sequence[Path],
    protocol: Bench,
    inputs: Inputs | None = None,
    progress: Callable[[float, str], None] = lambda share, text: None,
) -> dict[str, Any]:
    """`measure` for the files at `paths`, with a list `artifacts` of what they are.

    inputs: what they are called with, where the artifacts' own metadata does not say it. Raises UserError if a file is
    not
    there, if shapes are not known or not the same, or if artifacts for different devices are given.
    """
    cpus = available_cpus()
    threads = protocol.threads or len(cpus)
    if threads > len(cpus):
        raise UserError(f"--threads {threads}, and there are {len(cpus)} CPUs", f"give at most {len(cpus)}")
    stream_count(protocol, cpus)  # or it is refused
    metadata = [_metadata(path) for path in paths]
    asked = {_inputs(path, own, inputs) for path, own in zip(paths, metadata, strict=True)}
    devices = {own.device for own in metadata}
    for what, found in (("inputs", {in_words(one) for one in asked}), ("devices", devices)):
        if len(found) > 1:
            named = " and ".join(sorted(map(str, found)))
            raise UserError(f"the artifacts have different {what}: {named}", "measure those that belong together")
    if protocol.streams is not None and devices != {"cpu"}:
        raise UserError("--streams is of CPUs, and the artifacts are for a GPU", "leave --streams out")
    for path, own in zip(paths, metadata, strict=True):
        most = own.max_batch
        if most is not None and max(protocol.batch_sizes) > most:
            raise UserError(f"{path} takes at most {most} images a call", f"give --batch-size {most}, or less")
    names = _names(paths, metadata)
    contenders = []
    for name, path, own in zip(names, paths, metadata, strict=True):
        runtime = runtime_of_file(path).name
        contenders.append(
            ContenderSettings(
                name, runtime, min(devices), str(path), next(iter(asked)), threads, "", 0, None, fp32=own.is_fp32
            )
        )
    artifacts = [
        {"name": name, "path": str(path), "size_bytes": path.stat().st_size}
        for name, path in zip(names, paths, strict=True)
    ]
    measured = {"artifacts": artifacts, **measure(ways(contenders, protocol), protocol, cpus, progress)}
    if protocol.streams is not None:
        try:
            measured["throughput"] = throughputs(contenders, protocol, cpus, progress)
        except StageError as error:  # what was measured is worth more
            measured["no_throughput"] = f"{error.message}; {error.hint}"
    return measured


def _metadata(path: Path) -> Metadata:
    if not path.is_file():
        raise UserError(f"{path}: there is no such file", "give the path of an artifact (.pt2, .pte, .onnx or .trt)")
    return read_metadata(path)


def _inputs(path: Path, metadata: Metadata, asked: Inputs | None) -> Inputs:
    stated = metadata.inputs
    if stated is not None:
        if asked is not None and [one.shape for one in asked] != [one.shape for one in stated]:
            raise UserError(
                f"--input-shape {list(asked[0].shape)}, and {path} says that it takes {in_words(stated)}",
                "leave --input-shape out",
            )
        return stated
    if asked is None:
        raise UserError(
            f"{path}: the size of its input is not known (raq did not make it)", "give it with --input-shape 3,H,W"
        )
    return asked


def _names(paths: Sequence[Path], metadata: Sequence[Metadata]) -> list[str]:
    """The candidates' names or the files', with the folder's and a number where that is not enough."""
    own = [each.candidate for each in metadata]
    names = [(name or path.stem).replace("/", "-") for name, path in zip(own, paths, strict=True)]
    for more in ([path.resolve().parent.name for path in paths], [f"#{n + 1}" for n in range(len(paths))]):
        count = Counter(names)
        names = [f"{name} {extra}" if count[name] > 1 else name for name, extra in zip(names, more, strict=True)]
    return names
