"""How a process without raq loads an AOTInductor package: with torch alone. Run by alone.py; imports no raq."""

import torch

FOREIGN = {"torchao"}  # what must not be needed


def prepare(threads: int) -> None:
    """Nothing is to be imported before the load is timed."""


def load(path: str):  # type: ignore[no-untyped-def]
    """The package as a function of images."""
    return torch._inductor.aoti_load_package(path)
