"""What this machine and installation are: versions, commit, CPU features, GPU. Neither torch nor ray is imported."""

import os
import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

LIBRARIES = ("torch", "torchvision", "torchao", "ray", "numpy")
FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimd", "asimddp", "i8mm")


def versions(names: tuple[str, ...] = LIBRARIES) -> dict[str, str | None]:
    """Installed versions, None for what is not installed."""
    found: dict[str, str | None] = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


@cache
def commit() -> str | None:
    """The commit of the checkout that this package runs from, "-dirty" if changed; None outside a checkout."""
    folder = Path(__file__).resolve().parent
    if not (folder.parent / ".git").exists():
        return None
    revision = _output("git", "-C", str(folder), "rev-parse", "HEAD")
    changed = _output("git", "-C", str(folder), "status", "--porcelain", "--", str(folder))
    return None if revision is None else revision + ("-dirty" if changed else "")


@cache
def machine() -> dict[str, Any]:
    """What measured times and compiled code depend on: CPU model, features, count; GPUs by name."""
    cpu: dict[str, str] = {}
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.is_file() else []:
        key, _, value = line.partition(":")
        cpu.setdefault(key.strip(), value.strip())
    flags = (cpu.get("flags") or cpu.get("Features") or "").split()
    return {
        "cpu": cpu.get("model name") or platform.processor() or platform.machine(),
        "architecture": platform.machine(),
        "features": [feature for feature in FEATURES if feature in flags],
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpus": gpus(),
    }


@cache
def gpus() -> list[str]:
    """Names of the NVIDIA GPUs that the driver shows; empty without a driver."""
    listed = _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
    return [line.strip() for line in (listed or "").splitlines() if line.strip()]


def gpu_state() -> list[dict[str, Any]] | None:
    """Each GPU now: its index, clock in MHz, temperature in degrees Celsius, throttle reasons (a bit mask in
    hexadecimal), and how many processes compute on it. None without a driver, or if it does not answer."""
    if not gpus():
        return None
    asked = "index,uuid,clocks.sm,temperature.gpu,clocks_throttle_reasons.active"
    listed = _output("nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader,nounits")
    computing = _output("nvidia-smi", "--query-compute-apps=gpu_uuid,pid", "--format=csv,noheader")
    return None if listed is None else read_gpu_state(listed, computing)


def read_gpu_state(listed: str, computing: str | None) -> list[dict[str, Any]]:
    """`gpu_state` from what nvidia-smi printed; processes are None if it did not list them."""
    found = []
    for line in listed.splitlines():
        index, uuid, clock, temperature, reasons = (field.strip() for field in line.split(","))
        found.append(
            {
                "index": int(index),
                "mhz": _number(clock),
                "celsius": _number(temperature),
                "throttle_reasons": reasons if reasons.startswith("0x") else None,
                "processes": None if computing is None else computing.count(uuid),
            }
        )
    return found


def _number(text: str) -> float | None:
    """A number, or None for what nvidia-smi prints instead of one ("[N/A]")."""
    try:
        return float(text)
    except ValueError:
        return None


def has_vnni(features: list[str]) -> bool:
    """Whether int8 products are added in 32 bits, so that 8-bit activations cannot saturate."""
    return any(feature in features for feature in ("avx512_vnni", "avx_vnni", "amx_int8"))


def environment() -> dict[str, Any]:
    """All of it, for a record."""
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "versions": versions((*LIBRARIES, "executorch", "raq")),
        "commit": commit(),
        "machine": machine(),
    }


def _output(*command: str) -> str | None:
    """What a command printed; None if it is not there, failed, or took longer than ten seconds."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
