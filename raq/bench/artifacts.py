"""`raq bench`: the latency of any artifacts side by side, against the first of them.

An artifact is native code: measuring it loads and runs it.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from raq.bench.latency import measure
from raq.bench.machine import available_cpus
from raq.bench.processes import ContenderSettings
from raq.errors import UserError
from raq.experiment import Bench
from raq.quantize.generated import METADATA_KEY, read_metadata

MOST_PIXELS = 4096 * 4096
NO_INPUT = "give it with --input 3,HEIGHT,WIDTH"


def bench_artifacts(
    paths: Sequence[Path],
    protocol: Bench,
    shape: tuple[int, ...] | None = None,
    progress: Callable[[float, str], None] = lambda share, text: None,
) -> dict[str, Any]:
    """`measure` for the files at `paths`, with a list `artifacts` of what they are.

    shape: [3, H, W] of the input, where the artifacts' own metadata does not tell it. Raises UserError if a file is not
    there, if shapes are not known or not the same, or if artifacts for different devices are given.
    """
    cpus = available_cpus()
    threads = protocol.threads or len(cpus)
    if threads > len(cpus):
        raise UserError(f"--threads {threads}, and there are {len(cpus)} CPUs", f"give at most {len(cpus)}")
    metadata = [_metadata(path) for path in paths]
    shapes = {_shape(path, told, shape) for path, told in zip(paths, metadata, strict=True)}
    devices = {str(told.get("AOTI_DEVICE_KEY", "cpu")) for told in metadata}
    for what, found in (("inputs", shapes), ("devices", devices)):
        if len(found) > 1:
            named = " and ".join(sorted(map(str, found)))
            raise UserError(f"the artifacts have different {what}: {named}", "measure those that belong together")
    names = _names(paths, metadata)
    contenders = [
        ContenderSettings(f"{name}/inductor", "inductor", min(devices), str(path), min(shapes), threads, "", 0, None)
        for name, path in zip(names, paths, strict=True)
    ]
    artifacts = [
        {"name": name, "path": str(path), "size_bytes": path.stat().st_size}
        for name, path in zip(names, paths, strict=True)
    ]
    return {"artifacts": artifacts, **measure(contenders, protocol, cpus, progress)}


def _metadata(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path}: there is no such file", "give the path of an artifact (.pt2)")
    return read_metadata(path)


def _shape(path: Path, metadata: dict[str, Any], asked: tuple[int, ...] | None) -> tuple[int, ...]:
    told = (metadata.get(METADATA_KEY) or {}).get("input")
    sizes = tuple(size for size in told if isinstance(size, int) and size > 0) if isinstance(told, list) else ()
    if len(sizes) == 3 and math.prod(sizes) <= MOST_PIXELS:
        if asked not in (None, sizes):
            raise UserError(f"--input {asked}, and {path} says that its input is {sizes}", "leave --input out")
        return sizes
    if asked is None:
        raise UserError(f"{path}: the size of its input is not known (raq did not make it)", NO_INPUT)
    return asked


def _names(paths: Sequence[Path], metadata: Sequence[dict[str, Any]]) -> list[str]:
    """The candidates' names or the files', with the folder's and a number where that is not enough."""
    own = [(told.get(METADATA_KEY) or {}).get("candidate") for told in metadata]
    names = [str(name or path.stem).replace("/", "-") for name, path in zip(own, paths, strict=True)]
    for more in ([path.resolve().parent.name for path in paths], [f"#{n + 1}" for n in range(len(paths))]):
        count = Counter(names)
        names = [f"{name} {extra}" if count[name] > 1 else name for name, extra in zip(names, more, strict=True)]
    return names
