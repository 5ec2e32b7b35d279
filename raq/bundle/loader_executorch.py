"""How ExecuTorch alone loads this model: a program for its XNNPACK backend."""

from collections.abc import Callable
from typing import Any


def load(path: str, threads: int, device: str) -> Callable[..., Any]:
    """The file as a function of arrays [n, ...] to an array [n, ...]. RuntimeError if it is damaged."""
    import torch
    from executorch.extension.pybindings import portable_lib
    from executorch.runtime import Runtime

    portable_lib._unsafe_reset_threadpool(threads)
    method = Runtime.get().load_program(path).load_method("forward")
    return lambda *inputs: method.execute([torch.from_numpy(value) for value in inputs])[0].float().numpy().copy()
