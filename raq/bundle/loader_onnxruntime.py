"""How ONNX Runtime alone loads this model: an ONNX file, compiled here for this CPU."""

from collections.abc import Callable
from typing import Any


def load(path: str, threads: int, device: str) -> Callable[..., Any]:
    """The file as a function of arrays [n, ...] to an array [n, ...]. An exception of its own if it is damaged."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    return lambda *inputs: session.run(None, dict(zip(names, inputs, strict=True)))[0]
