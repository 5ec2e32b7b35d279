"""ONNX files, which ONNX Runtime and OpenVINO execute and TensorRT builds engines of: how they are written and read.

They are made of the same program as a package of Inductor, so that weights, scales and zero points are the same: what
torch calls quantize and dequantize are pairs of QuantizeLinear and DequantizeLinear here, between which a runtime may
compute in int8. Whether it does is its own decision, which account.py asks it for.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from raq.artifact.generated_code import MAX_METADATA_BYTES, GeneratedCode
from raq.artifact.metadata import METADATA_KEY, Metadata
from raq.artifact.onnx_bytes import MODEL_GRAPH, MODEL_METADATA, fields, text_entry
from raq.artifact.onnx_graph import Graph, with_shapes
from raq.environment import versions
from raq.errors import RaqError, StageError, first_line
from raq.experiment.inputs import image_input
from raq.lazy import require_library
from raq.store.files import refuse_constant

OPSET = 21
OUTPUT = "logits"
DAMAGE = (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError, MemoryError, RecursionError)


def is_onnx(path: Path) -> bool:
    """Whether a file is ONNX, by the fields that it consists of; they are not read."""
    try:
        return MODEL_GRAPH in {number for number, _, _ in fields(path)}
    except (OSError, ValueError):
        return False


def is_for(path: Path, runtime: str) -> bool:
    """Whether a file is ONNX and its metadata say that it is for this runtime."""
    if not is_onnx(path):
        return False
    try:
        return Metadata(read_metadata(path)).runtime == runtime
    except StageError:
        return False  # then it is for the one that takes any, which says what is wrong


def write(
    program: ExportedProgram,
    path: Path,
    runtime: str,
    metadata: dict[str, Any],
    change: Callable[[Any], Any] = lambda model: None,
    opset: int = OPSET,
) -> None:
    """Write a program as ONNX for a runtime, for any batch size; `metadata` (plain values) travels in the file.

    change: of the model (onnx.ModelProto), in place, before it is written.

    Raises StageError if an operator has no translation, if activations have 7 bits, which ONNX cannot say, or if the
    file would be larger than 2 GB; UserError if a library is not installed.
    """
    for name in ("onnx", "onnxscript"):
        require_library(name, runtime)
    _refuse_narrow(program)
    try:
        with torch.no_grad():
            found = torch.onnx.export(
                program, dynamo=True, opset_version=opset, verbose=False, output_names=[OUTPUT],
                input_names=[one.name for one in Metadata({METADATA_KEY: metadata}).inputs or (image_input(()),)],
            )  # fmt: skip
        assert found is not None
        model = found.model_proto
        _forget_sources(model)
        change(model)
        entry = model.metadata_props.add()
        written = {**metadata, "runtime": runtime, **versions(("torch", runtime))}
        entry.key, entry.value = METADATA_KEY, json.dumps(written, sort_keys=True)
        content = model.SerializeToString()
    except RaqError:
        raise
    except Exception as error:
        raise StageError(
            f"the program cannot be written as ONNX: {first_line(error)}",
            "leave this runtime out of lower.runtimes; --debug shows all of it",
        ) from error
    path.write_bytes(content)


def _refuse_narrow(program: ExportedProgram) -> None:
    """StageError if a quantization has fewer than all values of its type: QuantizeLinear knows types alone.

    But for -127 to 127: with -128 too, what would be cut off at the lowest value is a step nearer to itself.
    """
    for node in program.graph.nodes:
        if "quantize_per_tensor" in str(node.target) and len(node.args) > 5:
            least, most, dtype = node.args[3:6]
            whole = isinstance(dtype, torch.dtype) and (torch.iinfo(dtype).min, torch.iinfo(dtype).max)
            if whole and (least, most) not in (whole, (whole[0] + 1, whole[1]) if whole[0] else whole):
                raise StageError(
                    f"activations go from {least} to {most} (reduce_range), which ONNX cannot say of {dtype}",
                    "leave this runtime out of lower.runtimes, or set ptq.reduce_range to false",
                )


def _forget_sources(model: Any) -> None:
    """Remove where in the exporter's Python each node comes from: paths of this machine, and a fifth of small files."""
    graph = model.graph
    for entry in (*graph.node, *graph.input, *graph.output, *graph.initializer, *graph.value_info):
        del entry.metadata_props[:]
        entry.doc_string = ""


def read_metadata(path: Path) -> dict[str, Any]:
    """What `write` wrote, as a package's metadata; nothing for a stranger's. StageError if it is damaged."""
    try:
        entries = [text_entry(path, at, size) for number, at, size in fields(path) if number == MODEL_METADATA]
        text = dict(entries).get(METADATA_KEY)
        if text is None:
            return {}
        if len(text) > MAX_METADATA_BYTES:
            raise ValueError("its metadata is too large")
        found = json.loads(text, parse_constant=refuse_constant)
        if not isinstance(found, dict):
            raise ValueError("its metadata is no mapping")
    except (OSError, *DAMAGE) as error:
        raise _unreadable(path, error) from None
    return {METADATA_KEY: found}


def read(path: Path) -> GeneratedCode:
    """Read a file; nothing of it is executed. Calls are what the file asks for: a runtime may do otherwise.

    Raises StageError if it is damaged, no such file or not whole (its weights in other files), UserError if the library
    `onnx` is not installed.
    """
    require_library("onnx", "onnxruntime")
    import onnx
    from google.protobuf.message import DecodeError

    metadata = read_metadata(path)
    try:
        model = onnx.load(str(path), load_external_data=False)
        outside = [t.name for t in model.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
        if outside:
            raise ValueError(f"{len(outside)} of its tensors are in other files: save it as one")
        graph = Graph(with_shapes(model).graph)
        constants, calls = list(graph.constants.values()), list(graph.calls())
    except (OSError, DecodeError, *DAMAGE) as error:
        raise _unreadable(path, error) from None
    size = path.stat().st_size
    return GeneratedCode(constants, calls, metadata, size, size)


def _unreadable(path: Path, error: BaseException) -> StageError:
    return StageError(f"{path}: not a readable ONNX file: {first_line(error)}", "lower it again")
