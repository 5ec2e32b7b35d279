"""TensorRT: an engine that it builds for one kind of GPU, and the ONNX file that it was built of, in one zip.

Needs `tensorrt`. Not run on a GPU yet. The network is strongly typed: TensorRT computes in int8 where the file has
pairs of quantize and dequantize, and in the file's own types elsewhere; FP32 is FP32, not TF32. An engine is
instructions and kernels for TensorRT: load only what you trust.
"""

import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.export import ExportedProgram

from raq.artifact import onnx
from raq.artifact.alone_tensorrt import Engine
from raq.artifact.generated_code import ENGINE, GeneratedCode
from raq.artifact.metadata import METADATA_KEY, Metadata
from raq.environment import versions
from raq.errors import StageError, first_line
from raq.lazy import require_library

NAME, GRAPH = "tensorrt", "model.onnx"
MAX_GRAPH_BYTES = 2_000_000_000


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
    """Write a program as ONNX and build its engine, tuned for single samples and for batches of `max_batch`.

    Raises as `onnx.write` does; StageError if TensorRT does not take the file or builds no engine.
    """
    assert device == "cuda", "there is no other"
    assert max_batch is not None, "an engine is tuned for sizes that are known"
    prepare()
    given = Metadata({METADATA_KEY: metadata}).inputs or ()
    if any(one.axes for one in given):
        raise StageError(
            "an engine is tuned for samples of one size, and those of these inputs vary",
            "leave tensorrt out of lower.runtimes",
        )
    with tempfile.TemporaryDirectory(prefix="raq-tensorrt-") as folder:
        graph = Path(folder) / GRAPH
        onnx.write(program, graph, NAME, {**metadata, "max_batch": max_batch})
        content = graph.read_bytes()
        pack(content, build(content, {one.name: one.shape for one in given}, max_batch), path)


def build(graph: bytes, shapes: dict[str, tuple[int, ...]], max_batch: int) -> bytes:
    """The engine of an ONNX file, serialized. shapes: of each input of one sample. StageError if there is none."""
    import tensorrt

    logger = tensorrt.Logger(tensorrt.Logger.ERROR)
    builder = tensorrt.Builder(logger)
    network = builder.create_network(1 << int(tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = tensorrt.OnnxParser(network, logger)
    if not parser.parse(graph):
        first = parser.get_error(0) if parser.num_errors else "it does not say why"
        raise StageError(f"TensorRT does not take the file: {first}", "leave tensorrt out of lower.runtimes")
    settings = builder.create_builder_config()
    settings.clear_flag(tensorrt.BuilderFlag.TF32)
    settings.profiling_verbosity = tensorrt.ProfilingVerbosity.DETAILED  # else it does not say what it executes
    for sizes in tuned_sizes(max_batch):
        profile = builder.create_optimization_profile()
        for name, shape in shapes.items():
            profile.set_shape(name, *((size, *shape) for size in sizes))
        settings.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, settings)
    if engine is None:
        raise StageError("TensorRT has built no engine", "--debug shows what it printed; is there enough memory?")
    return bytes(engine)


def tuned_sizes(max_batch: int) -> list[tuple[int, int, int]]:
    """The least, the best and the largest batch of each set of kernels: one for single samples, one for more."""
    single = (1, 1, 1)
    return [single] if max_batch == 1 else [single, (2, max_batch, max_batch)]


def pack(graph: bytes, engine: bytes, path: Path) -> None:
    """Write both into one file, uncompressed."""
    with zipfile.ZipFile(path, "w") as package:
        for name, content in ((GRAPH, graph), (ENGINE, engine)):
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
    """StageError if another version of TensorRT built the engine, which this one does not take."""
    made_by = Metadata(read_metadata(path)).ours.get(NAME)
    if made_by not in (None, found := versions((NAME,))[NAME]):
        raise StageError(
            f"{path}: built by TensorRT {str(made_by)[:50]}, this is {found}", "lower it again, or install the other"
        )


def read(path: Path) -> GeneratedCode:
    """What the engine was built of, and its size; nothing is executed. Raises as `onnx.read` does."""
    with tempfile.TemporaryDirectory(prefix="raq-tensorrt-") as folder:
        graph = _graph(path, Path(folder))
        with zipfile.ZipFile(path) as package:
            native = package.getinfo(ENGINE).file_size
        return replace(onnx.read(graph), native_bytes=native, file_bytes=path.stat().st_size)


def read_metadata(path: Path) -> dict[str, Any]:
    """What `lower` wrote. Raises as `onnx.read_metadata` does."""
    with tempfile.TemporaryDirectory(prefix="raq-tensorrt-") as folder:
        return onnx.read_metadata(_graph(path, Path(folder)))


def _graph(path: Path, folder: Path) -> Path:
    """The ONNX file, by itself; StageError if the package is damaged."""
    try:
        with zipfile.ZipFile(path) as package:
            if package.getinfo(GRAPH).file_size > MAX_GRAPH_BYTES:
                raise ValueError("its graph is larger than ONNX files are")
            (folder / GRAPH).write_bytes(package.read(GRAPH))
    except (OSError, KeyError, ValueError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise StageError(f"{path}: not a readable package: {first_line(error)}", "lower it again") from None
    return folder / GRAPH
