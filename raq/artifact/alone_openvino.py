"""How a process without raq loads an ONNX file: with OpenVINO alone. Run by alone.py; imports no raq."""

from types import SimpleNamespace
from typing import Any

import torch

FOREIGN = {"torchao", "onnx", "onnxscript"}  # what must not be needed
MULTIPLYING = (
    "Convolution", "Deconvolution", "FullyConnected", "MatMul", "RNNCell", "RNNSeq", "ScaledDotProductAttention",
)  # fmt: skip
LOADED = SimpleNamespace()  # what `account` needs


def compiled(path: str, threads: int) -> Any:
    """The file, compiled for this CPU: for one call at a time, FP32 where it is not int8, on all of the threads."""
    import openvino

    settings = {
        "INFERENCE_NUM_THREADS": threads, "ENABLE_HYPER_THREADING": True, "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }  # fmt: skip
    return openvino.Core().compile_model(path, "CPU", settings)


def prepare(threads: int) -> None:
    """Import OpenVINO before the load is timed."""
    import openvino  # noqa: F401

    LOADED.threads = threads


def load(path: str) -> Any:
    """The file as a function of the network's inputs [n, ...]. RuntimeError if damaged."""
    LOADED.model = compiled(path, LOADED.threads)
    request = LOADED.model.create_infer_request()
    return lambda *inputs: torch.from_numpy(
        request.infer([value.numpy() for value in inputs], share_inputs=True)[0].copy()
    )


def _starts(name: str) -> list[str]:
    """A name, and what it may have been before parts after slashes and "_original" were added."""
    parts = name.split("/")
    found = ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]
    return [start for start in (*found, *(one.removesuffix("_original") for one in found)) if start]


def account(*inputs: Any) -> list[dict[str, Any]]:
    """The kernels that multiply in the compiled graph, as OpenVINO reports them.

    Each with the nodes of the file that it computes (to whose names OpenVINO adds, after a slash, what it made of
    them), what it is called, and whether it computes in int8.
    """
    found = []
    for operation in LOADED.model.get_runtime_model().get_ops():
        known = {key: value.astype(str) for key, value in operation.get_rt_info().items()}
        kind, precision = known.get("layerType", ""), known.get("runtimePrecision", "")
        if kind in MULTIPLYING:
            names = [name for name in known.get("originalLayersNames", "").split(",") if name]
            found.append(
                {
                    "nodes": sorted({start for name in names for start in _starts(name)}),
                    "kernel": f"{kind} {known.get('primitiveType', '')} {precision}",
                    "int8": precision in ("i8", "u8"),
                }
            )
    return found
