"""ONNX files, which ONNX Runtime and OpenVINO execute: how they are written and read.

They are made of the same program as a package of Inductor, so that weights, scales and zero points are the same: what
torch calls quantize and dequantize are pairs of QuantizeLinear and DequantizeLinear here, between which a runtime may
compute in int8. Whether it does is its own decision, which account.py asks it for.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.export import ExportedProgram

from raq.artifact.generated_code import MAX_METADATA_BYTES, GeneratedCode
from raq.artifact.metadata import METADATA_KEY, Metadata
from raq.artifact.scales import bytes_digest
from raq.artifact.wrapper_code import Constant, KernelCall
from raq.environment import require_library, versions
from raq.errors import StageError, first_line
from raq.store.files import refuse_constant

OPSET = 21
VERSION_FIELD = b"\x08"  # a file begins with the version of its format, which is below 128: two bytes
INPUT, OUTPUT = "images", "logits"
CONVOLUTIONS = ("Conv", "ConvTranspose", "ConvInteger", "QLinearConv", "DeformConv")
MULTIPLYING = (
    *CONVOLUTIONS, "Gemm", "MatMul", "MatMulInteger", "QLinearMatMul", "Einsum", "LSTM", "GRU", "RNN", "Attention",
)  # fmt: skip
INSIDE = ("If", "Loop", "Scan")  # operators with graphs of their own, which are not read
VIEWS = ("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Identity")
INTEGERS = ("int8", "uint8")


def is_onnx(path: Path, runtime: str) -> bool:
    """Whether a file is ONNX for this runtime, as its metadata say; one that does not say is for ONNX Runtime.

    UserError if it may be one, and the library that reads it is not installed.
    """
    try:
        with path.open("rb") as file:
            start = file.read(3)
    except OSError:
        return False
    if len(start) < 3 or start[:1] != VERSION_FIELD or start[1] >= 128:
        return False
    try:
        named = Metadata(read_metadata(path)).runtime or "onnxruntime"
    except StageError:
        return False
    return named == runtime


def write(program: ExportedProgram, path: Path, runtime: str, metadata: dict[str, Any]) -> None:
    """Write a program as ONNX for a runtime, for any batch size; `metadata` (plain values) travels in the file.

    Raises StageError if an operator has no translation or the file would be larger than 2 GB, UserError if a library
    is not installed.
    """
    for name in ("onnx", "onnxscript"):
        require_library(name, runtime)
    import torch

    try:
        with torch.no_grad():
            found = torch.onnx.export(
                program, dynamo=True, opset_version=OPSET, verbose=False, input_names=[INPUT], output_names=[OUTPUT]
            )
        assert found is not None
        model = found.model_proto
        _forget_sources(model)
        entry = model.metadata_props.add()
        entry.key, entry.value = (
            METADATA_KEY,
            json.dumps({**metadata, "runtime": runtime, **versions(("torch", runtime))}, sort_keys=True),
        )
        content = model.SerializeToString()
    except Exception as error:
        raise StageError(
            f"the program cannot be written as ONNX: {first_line(error)}",
            "leave this runtime out of lower.runtimes; --debug shows all of it",
        ) from error
    path.write_bytes(content)


def _forget_sources(model: Any) -> None:
    """Remove where in the exporter's Python each node comes from: paths of this machine, and a fifth of small files."""
    graph = model.graph
    for entry in (*graph.node, *graph.input, *graph.output, *graph.initializer, *graph.value_info):
        del entry.metadata_props[:]
        entry.doc_string = ""


def read_metadata(path: Path) -> dict[str, Any]:
    """What `write` wrote, as a package's metadata; nothing for a stranger's. Raises as `read` does."""
    return _metadata(_model(path), path)


def read(path: Path) -> GeneratedCode:
    """Read a file; nothing of it is executed. Calls are what the file asks for: a runtime may do otherwise.

    Raises StageError if it is damaged or no such file, UserError if the library `onnx` is not installed.
    """
    model = _model(path)
    try:
        graph = _Graph(model.graph)
        constants = list(graph.constants.values())
        calls = list(graph.calls())
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError) as error:
        raise _unreadable(path, error) from None
    size = path.stat().st_size
    return GeneratedCode(constants, calls, _metadata(model, path), size, size)


def _model(path: Path) -> Any:
    require_library("onnx", "onnxruntime")
    import onnx
    from google.protobuf.message import DecodeError

    try:
        return onnx.load(str(path), load_external_data=False)
    except (OSError, DecodeError, ValueError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: BaseException) -> StageError:
    return StageError(f"{path}: not a readable ONNX file: {first_line(error)}", "lower it again")


def _metadata(model: Any, path: Path) -> dict[str, Any]:
    for entry in model.metadata_props:
        if entry.key == METADATA_KEY:
            try:
                if len(entry.value) > MAX_METADATA_BYTES:
                    raise ValueError("its metadata is too large")
                found = json.loads(entry.value, parse_constant=refuse_constant)
                if not isinstance(found, dict):
                    raise ValueError("its metadata is no mapping")
            except (ValueError, RecursionError) as error:
                raise _unreadable(path, error) from None
            return {METADATA_KEY: found}
    return {}


@dataclass(frozen=True)
class _Source:
    """Where an operand comes from: the tensor behind dequantization and views, and the scale; None if it is float."""

    tensor: str
    scale: str | None


class _Graph:
    """A graph's tensors by name, and what computes them."""

    def __init__(self, graph: Any) -> None:
        self.nodes = list(graph.node)
        self.tensors = {tensor.name: tensor for tensor in graph.initializer}
        for node in self.nodes:
            if node.op_type == "Constant":
                for entry in node.attribute:
                    if entry.name == "value":
                        self.tensors[node.output[0]] = entry.t
        self.makers = {name: node for node in self.nodes for name in node.output}
        self.types = {value.name: value.type.tensor_type for value in (*graph.input, *graph.output, *graph.value_info)}
        used = {name for node in self.nodes for name in node.input}
        self.constants = {
            name: Constant(
                name, name, _dtype(tensor.data_type), tuple(tensor.dims), _stored_bytes(tensor), name in used
            )
            for name, tensor in self.tensors.items()
        }

    def calls(self) -> Iterator[KernelCall]:
        """The operators that multiply, and those whose arithmetic is not known, in order."""
        for node in self.nodes:
            if node.op_type in MULTIPLYING and not node.domain:
                yield self._call(node)
            elif node.domain not in ("", "ai.onnx") or node.op_type in INSIDE:
                yield KernelCall(node.op_type, False, None, None, None, None, None, None, node.name)

    def _call(self, node: Any) -> KernelCall:
        data, weight = self._source(node.input[0]), self._source(node.input[1])
        integer = node.op_type in ("ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul") or (
            data.scale is not None and weight.scale is not None and self._is_integer(weight.tensor)
        )
        constant = self.constants.get(weight.tensor)
        output = self._shape(node.output[0])
        return KernelCall(
            kernel=f"{node.op_type} {'int8' if integer else 'float'}",
            integer=integer,
            layer=weight.tensor.removesuffix(".weight") if weight.tensor.endswith(".weight") else None,
            weight=weight.tensor if constant is not None else None,
            weight_scale=self._digest(weight.scale) if integer else None,
            weight_shape=constant.shape if constant is not None else None,
            output_shape=None if output is None else tuple(size or 0 for size in output[1:]),
            macs=self._macs(node, constant, output),
            node=node.name,
        )

    def _source(self, name: str) -> _Source:
        """What is behind views and a dequantization."""
        for _ in self.nodes:  # each step goes to an earlier node
            maker = self.makers.get(name)
            if maker is not None and maker.op_type == "DequantizeLinear" and not maker.domain:
                return _Source(maker.input[0], maker.input[1])
            if maker is None or maker.op_type not in VIEWS:
                break
            name = maker.input[0]
        return _Source(name, None)

    def _is_integer(self, name: str) -> bool:
        """Whether a tensor's numbers are 8 bits, as far as the file says."""
        if name in self.constants:
            return self.constants[name].dtype in INTEGERS
        found = self.types.get(name)
        return found is None or _dtype(found.elem_type) in INTEGERS

    def _shape(self, name: str) -> list[int | None] | None:
        """The sizes of a tensor, None for those that are not fixed; None if the file does not say."""
        if name not in self.types or not self.types[name].HasField("shape"):
            return None
        return [size.dim_value if size.HasField("dim_value") else None for size in self.types[name].shape.dim]

    def _macs(self, node: Any, weight: Constant | None, output: list[int | None] | None) -> int | None:
        """Multiply-accumulates an image; None if they are not known. The first side of an output is the batch."""
        if node.op_type in ("Conv", "QLinearConv", "ConvInteger") and weight is not None and output is not None:
            return _product([*output[1:], *weight.shape[1:]])
        if node.op_type == "ConvTranspose" and weight is not None:
            source = self._shape(node.input[0])
            return None if source is None else _product([*source[1:], *weight.shape[1:]])
        if node.op_type in ("Gemm", "MatMul", "QLinearMatMul", "MatMulInteger") and output is not None:
            if weight is not None and len(weight.shape) == 2:
                return _product([*weight.shape, *output[1:-1]])
            inner = self._shape(node.input[0])
            return None if inner is None else _product([*output[1:], inner[-1]])
        return None

    def _digest(self, scale: str | None) -> str | None:
        """SHA-256 of a scale's numbers, one a channel; None for one that is not such."""
        tensor = self.tensors.get(scale or "")
        if tensor is None or len(tensor.dims) != 1 or _dtype(tensor.data_type) != "float32":
            return None
        from onnx.numpy_helper import to_array

        return bytes_digest(to_array(tensor).tobytes())


def _product(sizes: list[int | None]) -> int | None:
    known = [size for size in sizes if size is not None]
    return math.prod(known) if len(known) == len(sizes) else None


def _dtype(number: int) -> str:
    """A data type as torch calls it."""
    from onnx import TensorProto

    name = TensorProto.DataType.Name(number).lower()
    return {"float": "float32", "double": "float64"}.get(name, str(name))


def _stored_bytes(tensor: Any) -> int:
    """Bytes of a tensor in the file."""
    return len(tensor.raw_data) or tensor.ByteSize()
