"""How a process without raq loads an ExecuTorch program: with ExecuTorch alone. Run by alone.py; imports no raq."""

from typing import Any

FOREIGN: set[str] = set()  # ExecuTorch itself imports torchao


def prepare(threads: int) -> None:
    """Import ExecuTorch, and give it its threads, before the load is timed."""
    from executorch.extension.pybindings import portable_lib

    portable_lib._unsafe_reset_threadpool(threads)


def load(path: str) -> Any:
    """The program as a function of the network's inputs [n, ...]. RuntimeError if damaged."""
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(path).load_method("forward")
    return lambda *inputs: method.execute(list(inputs))[0]
