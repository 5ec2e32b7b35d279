"""The kind of GPU that is here, and the refusal of native code that was made for another one."""

from pathlib import Path

import torch

from raq.artifact.metadata import Metadata
from raq.errors import StageError


def gpu_kind() -> str | None:
    """The kind of GPU, with its compute capability; None where there is none."""
    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability()
    return f"{torch.cuda.get_device_name()}, {major}.{minor}"


def refuse_other_gpu(path: Path, made: Metadata) -> None:
    """StageError if the file says that it was made for another kind of GPU; one that says nothing is not refused."""
    meant, here = made.ours.get("gpu"), gpu_kind()
    if meant is not None and here is not None and meant != here:
        raise StageError(f"{path}: made for the GPU {str(meant)[:80]}, this is {here}", "lower it again here")
