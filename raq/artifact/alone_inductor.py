"""How a process without raq loads an AOTInductor package: with torch alone. Run by alone.py; imports no raq."""

from typing import Any

import torch

FOREIGN = {"torchao"}  # what must not be needed


def prepare(threads: int) -> None:
    """Nothing is to be imported before the load is timed."""


def load(path: str) -> Any:
    """The package as a function of the network's inputs [n, ...]. RuntimeError if damaged."""
    return torch._inductor.aoti_load_package(path)
