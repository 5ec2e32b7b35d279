"""How OpenVINO alone loads this model: an ONNX file, compiled here for this CPU."""

from collections.abc import Callable
from typing import Any


def load(path: str, threads: int, device: str) -> Callable[..., Any]:
    """The file as a function of arrays [n, ...] to an array [n, ...]. RuntimeError if it is damaged."""
    import openvino

    settings = {
        "INFERENCE_NUM_THREADS": threads, "ENABLE_HYPER_THREADING": True, "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }  # fmt: skip
    request = openvino.Core().compile_model(path, device.upper(), settings).create_infer_request()
    return lambda *inputs: request.infer(list(inputs))[0].copy()
