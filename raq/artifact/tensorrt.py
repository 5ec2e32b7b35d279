"""TensorRT: an engine that it builds for one kind of GPU, and the ONNX file that it was built of, in one zip.

Needs TensorRT. Not run on a GPU yet. The network is strongly typed: TensorRT computes in int8 where the file has pairs
of quantize and dequantize, and in the file's own types elsewhere; FP32 is FP32, not TF32. An engine is instructions and
kernels for TensorRT: load only what you trust.
"""

import json
import tempfile
import zipfile
from collections.abc import Callable, Collection
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.export import ExportedProgram

from raq.artifact import onnx
from raq.artifact.alone_tensorrt import ABOUT, ENGINE, Engine
from raq.artifact.generated_code import DAMAGE, MAX_METADATA_BYTES, GeneratedCode, package_entries
from raq.artifact.gpu_kind import gpu_kind, refuse_other_gpu
from raq.artifact.metadata import METADATA_KEY, Metadata
from raq.environment import torch_version
from raq.errors import RaqError, StageError, first_line
from raq.experiment.inputs import Inputs
from raq.lazy import require_library
from raq.store.files import refuse_constant

NAME, GRAPH = "tensorrt", "model.onnx"
MAX_GRAPH_BYTES = 2_000_000_000
TYPES = ("float32", "int64", "int32", "bool")  # of inputs
HALF_OPSET = 22  # the first in which convolutions take bfloat16


def prepare() -> None:
    """Import TensorRT; UserError if it is not installed."""
    require_library(NAME, NAME)


def lower(
    program: ExportedProgram,
    path: Path,
    metadata: dict[str, Any],
    device: str = "cuda",
    max_batch: int | None = None,
    min_batch: int = 1,
) -> None:
    """Write a program as ONNX and build its engine, tuned for the metadata's `batch_sizes`, for up to `max_batch`.

    Raises as `onnx.write` does; StageError if TensorRT does not take the file or builds no engine.
    """
    assert device == "cuda", "there is no other"
    assert max_batch is not None, "memory is planned for the largest batch"
    prepare()
    given = Metadata({METADATA_KEY: metadata}).inputs or ()
    _refuse_inputs(given)
    sizes = sorted({*metadata.get("batch_sizes", ()), max_batch})
    about = {
        **metadata, "batch_sizes": sizes, "max_batch": max_batch, "device": device, "runtime": NAME,
        "torch": torch_version(), NAME: _version(), "gpu": gpu_kind(),
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="raq-tensorrt-") as folder:
        graph = Path(folder) / GRAPH
        onnx.write(program, graph, NAME, about, opset=HALF_OPSET if metadata.get("kind") == "half" else onnx.OPSET)
        content = graph.read_bytes()
    pack(content, build(content, {one.name: one.shape for one in given}, sizes), about, path)


def _refuse_inputs(given: Inputs) -> None:
    """StageError for inputs that an engine does not take as they are."""
    for one in given:
        if one.axes or one.dtype not in TYPES:
            why = "vary in size" if one.axes else f"are {one.dtype}"
            raise StageError(
                f"an engine takes samples of one size, of {', '.join(TYPES)}, and those of {one.name} {why}",
                "leave tensorrt out of lower.runtimes",
            )


def build(graph: bytes, shapes: dict[str, tuple[int, ...]], sizes: Collection[int]) -> bytes:
    """The engine of an ONNX file, serialized. shapes: of each input of one sample. StageError if there is none."""
    try:
        return _built(graph, shapes, sizes)
    except RaqError:
        raise
    except Exception as error:
        raise StageError(f"TensorRT cannot build the engine: {first_line(error)}", "--debug shows all of it") from error


def _built(graph: bytes, shapes: dict[str, tuple[int, ...]], sizes: Collection[int]) -> bytes:
    tensorrt = import_module(NAME)
    logger = tensorrt.Logger(tensorrt.Logger.ERROR)
    builder = tensorrt.Builder(logger)
    network = builder.create_network(1 << int(tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = tensorrt.OnnxParser(network, logger)
    if not parser.parse(graph):
        first = str(parser.get_error(0)).splitlines()[0] if parser.num_errors else "it does not say why"
        raise StageError(f"TensorRT does not take the file: {first}", "leave tensorrt out of lower.runtimes")
    settings = builder.create_builder_config()
    settings.clear_flag(tensorrt.BuilderFlag.TF32)
    settings.profiling_verbosity = tensorrt.ProfilingVerbosity.DETAILED  # else it does not say what it executes
    for batches in tuned_ranges(sizes):
        profile = builder.create_optimization_profile()
        for name, shape in shapes.items():
            profile.set_shape(name, *((size, *shape) for size in batches))
        if settings.add_optimization_profile(profile) < 0:
            raise StageError(f"TensorRT takes no batches of {batches[0]} to {batches[2]}", "change lower.max_batch")
    engine = builder.build_serialized_network(network, settings)
    if engine is None:
        raise StageError("TensorRT has built no engine", "--debug shows what it printed; is there enough memory?")
    return bytes(engine)


def tuned_ranges(sizes: Collection[int]) -> list[tuple[int, int, int]]:
    """For each size the least, the best and the largest batch of its kernels: sizes between go with the next larger."""
    rising = sorted(set(sizes))
    return [(before + 1, size, size) for before, size in zip([0, *rising], rising, strict=False)]


def pack(graph: bytes, engine: bytes, about: dict[str, Any], path: Path) -> None:
    """Write all into one file, uncompressed, the engine first."""
    written = json.dumps(about, sort_keys=True).encode()
    with zipfile.ZipFile(path, "w") as package:
        for name, content in ((ENGINE, engine), (ABOUT, written), (GRAPH, graph)):
            package.writestr(zipfile.ZipInfo(name), content)


def load(path: Path, threads: int) -> Callable[..., Tensor]:
    """The engine as a function of the network's inputs [n, ...] on a GPU; StageError if it cannot be loaded there."""
    prepare()
    refuse(path)
    try:
        return Engine(str(path))
    except Exception as error:
        raise StageError(f"{path}: the artifact cannot be loaded: {first_line(error)}", "lower it again") from error


def refuse(path: Path) -> None:
    """StageError if the engine was built by another version of TensorRT, or for another kind of GPU than is here."""
    made, here = Metadata(read_metadata(path)), _version()
    meant = made.ours.get(NAME)
    if meant is not None and here is not None and meant != here:
        raise StageError(f"{path}: made for TensorRT {str(meant)[:80]}, this is {here}", "lower it again here")
    refuse_other_gpu(path, made)


def _version() -> str | None:
    """TensorRT's version; None if it is not here. Its distributions have several names."""
    try:
        return str(import_module(NAME).__version__)
    except (ImportError, OSError, AttributeError):
        return None


def read(path: Path) -> GeneratedCode:
    """What the engine was built of, and its size; all is read, nothing executed. Raises as `onnx.read` does."""
    with tempfile.TemporaryDirectory(prefix="raq-tensorrt-") as folder:
        graph = Path(folder) / GRAPH
        try:
            with zipfile.ZipFile(path) as package:
                entries = package_entries(package, path)
                if entries[GRAPH].file_size > MAX_GRAPH_BYTES:
                    raise ValueError("its graph is larger than ONNX files are")
                graph.write_bytes(package.read(GRAPH))
                for name in entries.keys() - {GRAPH}:
                    with package.open(name) as member:  # to its end, which checks its checksum
                        while member.read(1 << 20):
                            pass
                native = entries[ENGINE].file_size
        except DAMAGE as error:
            raise _unreadable(path, error) from None
        code = onnx.read(graph)
        return replace(code, metadata=read_metadata(path), native_bytes=native, file_bytes=path.stat().st_size)


def read_metadata(path: Path) -> dict[str, Any]:
    """What `lower` wrote; StageError if the package is damaged."""
    try:
        with zipfile.ZipFile(path) as package:
            entry = package_entries(package, path)[ABOUT]
            if entry.file_size > MAX_METADATA_BYTES:
                raise ValueError("its metadata is too large")
            found = json.loads(package.read(entry), parse_constant=refuse_constant)
            if not isinstance(found, dict):
                raise ValueError("its metadata is no mapping")
    except DAMAGE as error:
        raise _unreadable(path, error) from None
    return {METADATA_KEY: found}


def _unreadable(path: Path, error: BaseException) -> StageError:
    return StageError(f"{path}: not a readable package: {first_line(error)}", "lower it again")
