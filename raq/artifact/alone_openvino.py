"""How a process without raq loads an ONNX file: with OpenVINO alone. Run by alone.py; imports no raq."""

from types import SimpleNamespace
from typing import Any

import torch

FOREIGN = {"torchao", "onnx", "onnxscript"}  # what must not be needed
LOADED = SimpleNamespace()  # what `account` needs


def compiled(path: str, threads: int) -> Any:
    """The file, compiled for this CPU: for the latency of one call at a time, FP32 where it is not int8."""
    import openvino

    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    return openvino.Core().compile_model(path, "CPU", settings)


def prepare(threads: int) -> None:
    """Import OpenVINO before the load is timed."""
    import openvino  # noqa: F401

    LOADED.threads = threads


def load(path: str) -> Any:
    """The file as a function: normalised float32 [n, 3, H, W] to logits [n, classes]. RuntimeError if damaged."""
    LOADED.model = compiled(path, LOADED.threads)
    request = LOADED.model.create_infer_request()
    return lambda images: torch.from_numpy(request.infer([images.numpy()], share_inputs=True)[0].copy())


def account(images: Any) -> list[dict[str, Any]]:
    """The kernels of the compiled graph, as OpenVINO reports them.

    Each with the nodes of the file that it computes, what it is called, and whether it computes in int8.
    """
    found = []
    for operation in LOADED.model.get_runtime_model().get_ops():
        known = {key: value.astype(str) for key, value in operation.get_rt_info().items()}
        kind, precision = known.get("layerType", ""), known.get("runtimePrecision", "")
        if kind not in ("Const", "Input", "Output"):
            names = known.get("originalLayersNames", "").split(",")
            found.append(
                {
                    "nodes": [name.partition("/")[0] for name in names],
                    "kernel": f"{kind} {known.get('primitiveType', '')} {precision}",
                    "int8": precision in ("i8", "u8"),
                }
            )
    return found
