"""For ONNX Runtime: quantize what a convolution adds to a shortcut, over a range that follows from its neighbours.

ONNX Runtime computes a convolution in int8 only if its output is quantized. The x86 quantizer does not quantize what is
added to a shortcut, as oneDNN adds inside of the convolution, so no range of it was observed; but one is known. Let the
shortcut lie in [low, high] and the sum be quantized over [least, most], which are the ranges of their own quantization.
Whatever the convolution gives below least - high makes the sum smaller than `least`, which is cut off there, and
whatever it gives above most - low makes it larger than `most`; with a ReLU in between, all below -high makes the sum
negative. So to cut the convolution's output off at these bounds changes nothing. What is lost is the rounding, to one
of 256 steps over that range, and up to half a step of a bound, as the zero point is a whole number.
"""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np

from raq.artifact.metadata import METADATA_KEY

LIMITS = {"uint8": (0, 255), "int8": (-128, 127)}


def quantize_addends(model: Any) -> int:
    """Insert pairs of QuantizeLinear and DequantizeLinear after such convolutions, in place; how many.

    model: an onnx.ModelProto. Convolutions whose output, or whose sum, goes elsewhere too are left as they are.
    """
    return _Addends(model.graph).insert()


@dataclass(frozen=True)
class _Range:
    """What a quantization with one scale can represent, and the type of its numbers."""

    least: float
    most: float
    dtype: str


class _Addends:
    """The graph while pairs are inserted."""

    def __init__(self, graph: Any) -> None:
        self.graph = graph
        self.tensors = {tensor.name: tensor for tensor in graph.initializer}
        self.makers = {name: node for node in graph.node for name in node.output}
        self.users: dict[str, list[Any]] = defaultdict(list)
        for node in graph.node:
            for name in node.input:
                self.users[name].append(node)
        self.outputs = {value.name for value in graph.output}

    def insert(self) -> int:
        """See `quantize_addends`."""
        nodes: list[Any] = []
        count = 0
        for node in self.graph.node:
            nodes.append(node)
            bounds = self._bounds(node) if node.op_type == "Conv" and self._is_quantized(node) else None
            if bounds is not None:
                nodes += self._pair(node.output[0], bounds)
                count += 1
        copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
        del self.graph.node[:]
        self.graph.node.extend(copies)
        return count

    def _is_quantized(self, node: Any) -> bool:
        """Whether data and weight are dequantized for it."""
        return all((maker := self.makers.get(name)) and maker.op_type == "DequantizeLinear" for name in node.input[:2])

    def _only_user(self, name: str) -> Any:
        """The node that reads a tensor, if it is one alone."""
        users = self.users[name]
        return users[0] if len(users) == 1 and name not in self.outputs else None

    def _bounds(self, node: Any) -> "_Range | None":
        """Beyond which the output of a convolution does not change the quantized sum; None if that is not known."""
        add = self._only_user(node.output[0])
        if add is None or add.op_type != "Add":
            return None
        other = next(name for name in (*add.input, node.output[0]) if name != node.output[0])
        shortcut = self._range(self.makers.get(other), "DequantizeLinear") if other in add.input else None
        after = self._only_user(add.output[0])
        relu = after is not None and after.op_type == "Relu"
        total = self._range(self._only_user(after.output[0]) if relu else after, "QuantizeLinear")
        if shortcut is None or total is None:
            return None
        if shortcut.dtype != total.dtype:
            return None
        least = 0.0 if relu else total.least
        return _Range(min(0.0, least - shortcut.most), max(0.0, total.most - shortcut.least), total.dtype)

    def _range(self, node: Any, kind: str) -> "_Range | None":
        """What a quantization with one scale can represent; None for any other node."""
        from onnx import TensorProto
        from onnx.numpy_helper import to_array

        if node is None or node.op_type != kind or len(node.input) < 3:
            return None
        scale, zero = (self.tensors.get(name) for name in node.input[1:3])
        if scale is None or zero is None or to_array(scale).size != 1 or to_array(zero).size != 1:
            return None
        dtype = TensorProto.DataType.Name(zero.data_type).lower()
        if dtype not in LIMITS:
            return None
        step, middle = float(to_array(scale).item()), int(to_array(zero).item())
        least, most = ((limit - middle) * step for limit in LIMITS[dtype])
        return _Range(least, most, dtype)

    def _pair(self, name: str, bounds: "_Range") -> list[Any]:
        """A quantization of a tensor over these bounds and its inverse, which the tensor's users read from now on."""
        from onnx import helper, numpy_helper

        step = (bounds.most - bounds.least) / 255
        zero = round(LIMITS[bounds.dtype][0] - bounds.least / step)
        prefix = f"{METADATA_KEY}_{name}"
        self.graph.initializer.append(numpy_helper.from_array(np.array(step, np.float32), f"{prefix}_scale"))
        self.graph.initializer.append(numpy_helper.from_array(np.array(zero, bounds.dtype), f"{prefix}_zero_point"))
        parameters = [f"{prefix}_scale", f"{prefix}_zero_point"]
        for user in self.users[name]:
            for number, used in enumerate(user.input):
                if used == name:
                    user.input[number] = f"{prefix}_dequantized"
        return [
            helper.make_node("QuantizeLinear", [name, *parameters], [f"{prefix}_quantized"], f"{prefix}_quantize"),
            helper.make_node(
                "DequantizeLinear", [f"{prefix}_quantized", *parameters], [f"{prefix}_dequantized"],
                f"{prefix}_dequantize",
            ),
        ]  # fmt: skip
