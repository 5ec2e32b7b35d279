"""ONNX Runtime: what it executes is an ONNX file. Needs the extra `onnxruntime`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from raq.artifact import onnx
from raq.artifact.addends import quantize_addends
from raq.errors import StageError, first_line
from raq.lazy import require_library

NAME = "onnxruntime"


def prepare() -> None:
    """Import ONNX Runtime; UserError if it is not installed."""
    require_library(NAME, NAME)


def recognises(path: Path) -> bool:
    """Whether a file is ONNX, and not made for OpenVINO."""
    return onnx.is_onnx(path) and not onnx.is_for(path, "openvino")


def lower(
    program: ExportedProgram,
    path: Path,
    metadata: dict[str, Any],
    device: str = "cpu",
    max_batch: int | None = None,
    min_batch: int = 1,
) -> None:
    """Write a program for ONNX Runtime, for any batch size. Raises as `onnx.write` does.

    What convolutions add to shortcuts is quantized too, else they would be computed in float (addends.py).
    """
    assert device == "cpu", "there is no other"
    prepare()
    onnx.write(program, path, NAME, metadata, quantize_addends)


def load(path: Path, threads: int) -> Callable[..., Tensor]:
    """The file as a function of the network's inputs [n, ...], on `threads` threads; StageError if it is damaged."""
    prepare()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise StageError(f"{path}: the artifact cannot be loaded: {first_line(error)}", "lower it again") from error
    names = [given.name for given in session.get_inputs()]

    def network(*inputs: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {n: v.numpy() for n, v in zip(names, inputs, strict=True)})[0])

    return network
