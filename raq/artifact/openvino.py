"""OpenVINO: what it executes here is an ONNX file, which it reads and compiles when it loads it. Needs `openvino`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from raq.artifact import onnx
from raq.artifact.alone_openvino import compiled
from raq.errors import StageError, first_line
from raq.lazy import require_library

NAME = "openvino"


def prepare() -> None:
    """Import OpenVINO; UserError if it is not installed."""
    require_library(NAME, NAME)


def recognises(path: Path) -> bool:
    """Whether a file is ONNX for OpenVINO."""
    return onnx.is_for(path, NAME)


def lower(
    program: ExportedProgram,
    path: Path,
    metadata: dict[str, Any],
    device: str = "cpu",
    max_batch: int | None = None,
    min_batch: int = 1,
) -> None:
    """Write a program for OpenVINO, for any batch size. Raises as `onnx.write` does."""
    assert device == "cpu", "there is no other"
    prepare()
    onnx.write(program, path, NAME, metadata)


def load(path: Path, threads: int) -> Callable[..., Tensor]:
    """The file as a function of the network's inputs [n, ...], on `threads` threads; StageError if it is damaged."""
    prepare()
    try:
        request = compiled(str(path), threads).create_infer_request()
    except Exception as error:
        raise StageError(f"{path}: the artifact cannot be loaded: {first_line(error)}", "lower it again") from error

    def network(*inputs: Tensor) -> Tensor:
        return torch.from_numpy(request.infer([value.numpy() for value in inputs], share_inputs=True)[0].copy())

    return network
