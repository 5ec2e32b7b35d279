"""AOTInductor packages, native code that torch alone loads and runs: how they are made and loaded."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from raq.artifact.generated_code import read_metadata
from raq.artifact.gpu_kind import gpu_kind, refuse_other_gpu
from raq.artifact.metadata import METADATA_KEY, Metadata
from raq.artifact.packing import weights_packed_once
from raq.artifact.pooling import with_ceil_pools
from raq.artifact.written_sizes import sizes_written
from raq.environment import torch_version
from raq.errors import StageError, first_line


def lower(
    program: ExportedProgram,
    path: Path,
    metadata: dict[str, Any],
    device: str = "cpu",
    max_batch: int | None = None,
    min_batch: int = 1,
) -> None:
    """Compile a program with Inductor, weights frozen in, into the package at `path`, for any batch size.

    min_batch: the batch size whose layouts weights get. int8 layers want the same for all; of float ones, some 1x1
    convolutions want one for single images and another for more, and are then packed anew at a call (results/log.md).

    `metadata` (plain values) travels in the package, with torch's version. Compiled under no_grad: with gradients
    possible Inductor does not freeze, and unfrozen int8 graphs run as dequantize, float kernel, quantize.
    Raises StageError if the compiler fails.
    """
    # registers the int8 fusions of Inductor, on x86 and on Arm
    import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer  # noqa: F401

    if device != "cpu":
        from torch.export.passes import move_to_device_pass

        from raq.kernels.fusing import with_int8_operators

        program = move_to_device_pass(with_int8_operators(program), device)
    else:
        program = with_ceil_pools(program)
    here = {"torch": torch_version()} | ({} if device == "cpu" else {"gpu": gpu_kind()})
    written = json.dumps(metadata | here, sort_keys=True)
    configuration = {
        "freezing": True,
        "cpp.dynamic_threads": True,  # else the loops have, for ever, the number of threads of this process
        "aot_inductor.metadata": {METADATA_KEY: written},
    }
    try:
        with torch.no_grad(), weights_packed_once(min_batch), sizes_written():
            torch._inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=configuration)
    except Exception as error:
        first = first_line(error)
        raise StageError(
            f"Inductor cannot compile the program for {device}: {first}",
            "a C++ compiler (g++) and free disk are needed; --debug shows all of it",
        ) from error


def load(path: Path, threads: int | None = None) -> Callable[..., Tensor]:
    """The package as a function of the network's inputs [n, ...], on the threads that torch has.

    Runs native code: load only what you trust.

    Raises StageError if it is damaged or was made by another torch: its native code calls into torch's libraries,
    whose interface is not promised from one release to the next.
    """
    refuse(path)
    # on a GPU its own synchronization, of calls from several threads, cannot be captured in a CUDA graph
    alone = Metadata(read_metadata(path)).device == "cuda"
    try:
        network: Callable[..., Tensor] = torch._inductor.aoti_load_package(str(path), run_single_threaded=alone)
    except Exception as error:
        raise StageError(f"{path}: the artifact cannot be loaded: {error}", "run again to make it anew") from error
    return network


def refuse(path: Path) -> None:
    """StageError if the package says that it was made by another torch, or for another kind of GPU than is here; one
    that says nothing is not refused."""
    made = Metadata(read_metadata(path))
    made_by = made.torch
    if made_by is not None and made_by != torch_version():
        raise StageError(
            f"{path}: made by torch {made_by}, this is torch {torch_version()}: its native code is for the other",
            "lower it again with this torch, or install the other",
        )
    refuse_other_gpu(path, made)
