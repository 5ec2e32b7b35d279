"""`raq doctor` and the pre-flight of a run: what this machine and installation can do, and what would go wrong.

Reads files and versions; imports neither torch nor ray, and takes seconds.
"""

import os
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from raq.environment import EXTRAS, LIBRARIES, gpus, has_vnni, machine, versions

State = Literal["ok", "note", "bad"]
FREE_DISK_BYTES, FREE_MEMORY_BYTES, SHARED_MEMORY_BYTES = 5e9, 4e9, 2e8
FEATURE_MEANING = {
    "avx2": "vectorised float kernels",
    "avx512f": "wider vectors",
    "avx512_vnni": "int8 products added in 32 bits: full speed, no saturation",
    "avx_vnni": "int8 products added in 32 bits",
    "amx_int8": "int8 matrix tiles: several times VNNI's speed",
    "asimddp": "Arm's int8 dot products",
    "i8mm": "Arm's int8 matrix products",
}


@dataclass(frozen=True)
class Finding:
    """One thing looked at. state: ok, note (works, with a consequence) or bad (would go wrong); hint: what to do."""

    name: str
    state: State
    value: str
    hint: str = ""


def examine(results: Path) -> list[Finding]:
    """All findings for this machine; `results`: where records would be written."""
    return [
        *_cpu(),
        *_graphics(),
        *packages(),
        compiler(),
        *_space(results),
        *_memory(),
        *_data(),
    ]


def before_run(results: Path, *, compiles: bool) -> list[Finding]:
    """The findings that would make a run fail later; empty if there are none. compiles: whether it lowers anything."""
    looked = [*packages(), *_space(results), *([compiler()] if compiles else [])]
    return [finding for finding in looked if finding.state == "bad"]


def packages() -> list[Finding]:
    """Versions, and whether torchvision was built for this torch: a mismatch fails at import, deep in a run."""
    found = versions(LIBRARIES)
    missing = [name for name, version in found.items() if version is None]
    findings = [Finding(name, "ok", version) for name, version in found.items() if version is not None]
    findings += [Finding(name, "bad", "not installed", "uv sync") for name in missing]
    for name, installed in versions(tuple(EXTRAS)).items():
        if installed is None:
            findings.append(Finding(name, "note", "not installed", f"only {EXTRAS[name]} needs it"))
        else:
            findings.append(Finding(name, "ok", installed))
    if "torch" in missing or "torchvision" in missing:
        return findings
    wanted = next((r for r in metadata.requires("torchvision") or [] if re.match(r"torch\s*\(?==", r)), None)
    version = re.search(r"==\s*([\w.+]+)", wanted or "")
    torch = str(found["torch"])
    if version and torch.split("+", maxsplit=1)[0] != version.group(1).split("+")[0]:
        findings.append(
            Finding(
                "torchvision for torch",
                "bad",
                f"torchvision {found['torchvision']} is for torch {version.group(1)}, here is {torch}",
                "install the pair that belongs together: uv sync",
            )
        )
    return findings


def compiler() -> Finding:
    """The C++ compiler that Inductor calls."""
    name = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    path = shutil.which(name)
    if path is None:
        return Finding("C++ compiler", "bad", f"no {name}", "install g++: Inductor compiles every artifact with it")
    return Finding("C++ compiler", "ok", path)


def _cpu() -> list[Finding]:
    here = machine()
    findings = [Finding("CPU", "ok", f"{here.cpu}, {here.cpus} CPUs for this process, {here.architecture}")]
    findings += [Finding(f"  {feature}", "ok", FEATURE_MEANING.get(feature, "")) for feature in here.features]
    if here.architecture in ("x86_64", "AMD64") and not has_vnni(here):
        findings.append(
            Finding("  no VNNI", "note", "int8 kernels could saturate: activations get 7 bits (reduce_range)")
        )
    if here.architecture not in ("x86_64", "AMD64"):
        findings.append(
            Finding("  not x86", "note", "int8 kernels of the x86 backend are not there: it lowers to float")
        )
    findings += [Finding("  set here", "note", f"{name}={value}") for name, value in here.settings.items()]
    return findings


FOR_GPUS = "ptq.backend: cuda has int8 kernels for it, not run on a GPU yet; graphs of x86 compute in floats there"


def _graphics() -> list[Finding]:
    found = gpus()
    if not found:
        return [Finding("GPU", "note", "none that nvidia-smi shows: no rows for cuda")]
    return [Finding("GPU", "note", name, FOR_GPUS) for name in found]


def _space(results: Path) -> list[Finding]:
    findings = []
    for name, place in (("disk for results", results), ("disk for temporary files", Path(tempfile.gettempdir()))):
        existing = next(p for p in (place.resolve(), *place.resolve().parents) if p.exists())
        free = shutil.disk_usage(existing).free
        value = f"{free / 1e9:.1f} GB free in {existing}"
        state: State = "bad" if free < FREE_DISK_BYTES / 16 else "note" if free < FREE_DISK_BYTES else "ok"
        findings.append(Finding(name, state, value, "" if state == "ok" else "free some space"))
    return findings


def _memory() -> list[Finding]:
    info = Path("/proc/meminfo")
    if not info.is_file():
        return []
    available = re.search(r"MemAvailable:\s+(\d+) kB", info.read_text())
    findings = []
    if available:
        free = int(available.group(1)) * 1024
        state: State = "ok" if free >= FREE_MEMORY_BYTES else "note"
        findings.append(Finding("memory", state, f"{free / 1e9:.1f} GB available"))
    shared = Path("/dev/shm")
    if shared.is_dir():
        free = shutil.disk_usage(shared).free
        state = "ok" if free >= SHARED_MEMORY_BYTES else "note"
        hint = "" if state == "ok" else "Ray's object store goes to disk; in Docker give --shm-size"
        findings.append(Finding("shared memory", state, f"{free / 1e9:.1f} GB free", hint))
    return findings


def _data() -> list[Finding]:
    from raq.model.sources import find_cifar10

    folder = find_cifar10(None)
    cifar10 = (
        Finding("data set cifar10", "ok", str(folder))
        if folder
        else Finding("data set cifar10", "note", "not found", "downloaded by a run that needs it; or set RAQ_DATA")
    )
    return [Finding("data set digits", "ok", "inside scikit-learn"), cifar10]


def as_json(findings: list[Finding]) -> list[dict[str, Any]]:
    """For programs."""
    return [{"name": f.name.strip(), "state": f.state, "value": f.value, "hint": f.hint} for f in findings]
