"""What an ONNX graph asks for: its tensors, and the operators that multiply, with what they multiply."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from raq.artifact.cpp import Deadline
from raq.artifact.scales import bytes_digest
from raq.artifact.wrapper_code import Constant, KernelCall

DOMAINS = ("", "ai.onnx")  # of the standard's own operators
# which operand is the weight, and which its scale where the operator has that itself
WEIGHT, WEIGHT_SCALE = {"QLinearConv": 3, "QLinearMatMul": 3}, {"QLinearConv": 4, "QLinearMatMul": 4}
CONVOLUTIONS, PRODUCTS = ("Conv", "ConvInteger", "QLinearConv"), ("Gemm", "MatMul", "MatMulInteger", "QLinearMatMul")
UNKNOWN = ("DeformConv", "Einsum", "LSTM", "GRU", "RNN", "Attention")  # they multiply, how much is not counted here
MULTIPLYING = (*CONVOLUTIONS, *PRODUCTS, "ConvTranspose", *UNKNOWN)
INTEGER_OPERATORS = ("ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul")
VIEWS = ("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Identity")
INTEGERS = ("int8", "uint8")


def with_shapes(model: Any) -> Any:
    """The model with the shapes of what its nodes compute; itself if it has them, or if they cannot be inferred."""
    from onnx import shape_inference

    values = (*model.graph.value_info, *model.graph.output)
    known = {value.name for value in values if value.type.tensor_type.HasField("shape")}
    if all(name in known for node in model.graph.node if node.op_type in MULTIPLYING for name in node.output[:1]):
        return model
    try:
        return shape_inference.infer_shapes(model)
    except Exception:  # its kinds of error are many; then shapes, and what is counted by them, are not known
        return model


@dataclass(frozen=True)
class _Source:
    """Where an operand comes from: the tensor behind dequantization and views, and the scale; None if it is float."""

    tensor: str
    scale: str | None


class Graph:
    """A graph's tensors by name, and what computes them."""

    def __init__(self, graph: Any) -> None:
        self.deadline = Deadline()
        self.nodes = list(graph.node)
        self.tensors = {tensor.name: tensor for tensor in graph.initializer}
        for node in self.nodes:
            if node.op_type == "Constant":
                for entry in node.attribute:
                    if entry.name == "value":
                        self.tensors[node.output[0]] = entry.t
        self.makers = {name: node for node in self.nodes for name in node.output}
        self.sources: dict[str, _Source] = {}
        self.types = {value.name: value.type.tensor_type for value in (*graph.input, *graph.output, *graph.value_info)}
        used = {name for node in self.nodes for name in node.input}
        self.constants = {
            name: Constant(
                name, name, _dtype(tensor.data_type), tuple(tensor.dims), _stored_bytes(tensor), name in used
            )
            for name, tensor in self.tensors.items()
        }
        images = next((value for value in graph.input if value.name not in self.tensors), None)
        sizes = images.type.tensor_type.shape.dim if images is not None else []
        self.batch = (sizes[0].dim_param or sizes[0].dim_value) if sizes else None  # a symbol, or a number

    def calls(self) -> Iterator[KernelCall]:
        """The operators that multiply, and those whose arithmetic is not known, in order."""
        for node in self.nodes:
            self.deadline.check()
            inside = any(entry.HasField("g") or len(entry.graphs) for entry in node.attribute)
            if inside or node.domain not in DOMAINS:
                yield KernelCall(node.op_type, False, None, None, None, None, None, None, _names(node))
            elif node.op_type in MULTIPLYING:
                yield self._call(node)

    def _call(self, node: Any) -> KernelCall:
        at = WEIGHT.get(node.op_type, 1)
        data = self._source(node.input[0])
        weight = self._source(node.input[at]) if len(node.input) > at else _Source("", None)
        scale = node.input[WEIGHT_SCALE[node.op_type]] if node.op_type in WEIGHT_SCALE else weight.scale
        dequantized = data.scale is not None and weight.scale is not None
        integer = (node.op_type in INTEGER_OPERATORS or dequantized) and all(
            self._type(source.tensor) in INTEGERS for source in (data, weight)
        )
        constant = self.constants.get(weight.tensor)
        return KernelCall(
            kernel=f"{node.op_type} {'int8' if integer else 'float'}",
            integer=integer,
            layer=weight.tensor.removesuffix(".weight") if weight.tensor.endswith(".weight") else None,
            weight=weight.tensor if constant is not None else None,
            weight_scale=self._digest(scale) if integer else None,
            weight_shape=constant.shape if constant is not None else None,
            output_shape=None,
            macs=self._macs(node, constant),
            names=_names(node),
        )

    def _source(self, name: str) -> _Source:
        """What is behind views and a dequantization."""
        passed = []
        while name not in self.sources:
            passed.append(name)
            maker = self.makers.get(name)
            if maker is not None and maker.op_type == "DequantizeLinear" and maker.domain in DOMAINS:
                self.sources[name] = _Source(maker.input[0], maker.input[1])
            elif maker is None or maker.op_type not in VIEWS or len(passed) > len(self.nodes):
                self.sources[name] = _Source(name, None)
            else:
                name = maker.input[0]
        found = self.sources[name]
        self.sources |= dict.fromkeys(passed, found)
        return found

    def _type(self, name: str) -> str | None:
        """The type of a tensor's numbers; None if the file does not say."""
        if name in self.constants:
            return self.constants[name].dtype
        maker = self.makers.get(name)
        if maker is not None and maker.op_type == "QuantizeLinear":
            zero = self.constants.get(maker.input[2]) if len(maker.input) > 2 else None
            return zero.dtype if zero is not None else None if len(maker.input) > 2 else "uint8"
        found = self.types.get(name)
        return None if found is None else _dtype(found.elem_type)

    def _sizes(self, name: str) -> list[int | None] | None:
        """The sizes of a tensor for one image: 1 for the batch, 7 for one of 7 an image; None for what is not known."""
        if name not in self.types or not self.types[name].HasField("shape"):
            return None
        return [self._size(size) for size in self.types[name].shape.dim]

    def _size(self, size: Any) -> int | None:
        if not size.dim_param:
            return int(size.dim_value) if size.HasField("dim_value") else None
        parts = size.dim_param.replace(" ", "").split("*")
        others = [part for part in parts if part != self.batch]
        if len(others) != len(parts) - 1 or not all(part.isascii() and part.isdigit() for part in others):
            return None
        return math.prod(map(int, others))

    def _macs(self, node: Any, weight: Constant | None) -> int | None:
        """Multiply-accumulates an image; None if they are not known."""
        if node.op_type in UNKNOWN:
            return None
        places = self._sizes(node.input[0] if node.op_type == "ConvTranspose" else node.output[0])
        if places is None:
            return None
        each: list[int | None]  # multiply-accumulates for each number there
        if weight is not None and node.op_type not in PRODUCTS:
            each = list(weight.shape[1:])
        elif weight is not None and len(weight.shape) == 2:
            transposed = any(entry.name == "transB" and entry.i for entry in node.attribute)
            each = [weight.shape[1 if transposed else 0]]
        elif node.op_type in PRODUCTS:
            inner = self._sizes(node.input[0])
            each = [inner[-1] if inner else None]
        else:
            return None
        total = _product([*places, *each])
        if total is None or not isinstance(self.batch, int):
            return total
        return total // self.batch if self.batch and total % self.batch == 0 else None

    def _digest(self, scale: str | None) -> str | None:
        """SHA-256 of a scale's numbers, one a channel; None for one that is not such."""
        tensor = self.tensors.get(scale or "")
        if tensor is None or len(tensor.dims) != 1 or _dtype(tensor.data_type) != "float32":
            return None
        from onnx.numpy_helper import to_array

        return bytes_digest(to_array(tensor).tobytes())


def _names(node: Any) -> tuple[str, ...]:
    """What a runtime may call a node in its account: the node's name, or that of what it computes."""
    return tuple(name for name in (node.name, *node.output) if name)


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
