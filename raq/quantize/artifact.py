"""What is deployed: an AOTInductor package that torch alone loads and runs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from raq.errors import StageError

METADATA_KEY = "raq"


def lower(program: ExportedProgram, path: Path, metadata: dict[str, Any], device: str = "cpu") -> None:
    """Compile a program with Inductor, weights frozen in, for any batch size, into the package at `path`.

    `metadata` (plain values) travels in the package. Compiled under no_grad: with gradients possible Inductor does not
    freeze, and unfrozen int8 graphs run as dequantize, float kernel, quantize.
    Raises StageError if the compiler fails.
    """
    # registers the int8 fusions of Inductor
    import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer  # noqa: F401

    if device != "cpu":
        from torch.export.passes import move_to_device_pass

        program = move_to_device_pass(program, device)
    configuration = {"freezing": True, "aot_inductor.metadata": {METADATA_KEY: json.dumps(metadata, sort_keys=True)}}
    try:
        with torch.no_grad():
            torch._inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=configuration)
    except Exception as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise StageError(
            f"Inductor cannot compile the program for {device}: {first}",
            "a C++ compiler (g++) and free disk are needed; --debug shows all of it",
        ) from error


def load(path: Path) -> Callable[[Tensor], Tensor]:
    """The package as a function of normalised float32 [n, 3, H, W]. Runs native code: load only what you trust."""
    try:
        network: Callable[[Tensor], Tensor] = torch._inductor.aoti_load_package(str(path))
    except Exception as error:
        raise StageError(f"{path}: the artifact cannot be loaded: {error}", "run again to make it anew") from error
    return network
