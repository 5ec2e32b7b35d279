"""Quantization after training by other tools, as their users call it: NNCF's and ONNX Runtime's, of an ONNX model.

raq hands over the FP32 network with batch norms folded, and its own calibration images; what is quantized, and over
which ranges, is the tool's choice, by its defaults for CPUs.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from logging import Logger, getLogger
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from raq.environment import require_library
from raq.errors import StageError, first_line

QUANTIZERS: dict[str, Callable[[Any, Sequence[Tensor]], Any]] = {}


def quantize_by(tool: str, model: Any, batches: Sequence[Tensor]) -> None:
    """Quantize a model (onnx.ModelProto) in place by a tool of QUANTIZERS.

    batches: normalised float32 [n, 3, H, W]. Raises UserError if the tool is not installed, StageError if it fails.
    """
    require_library(tool, tool)
    try:
        model.CopyFrom(QUANTIZERS[tool](model, batches))
    except Exception as error:  # its kinds of error are its own
        raise StageError(
            f"{tool} cannot quantize the network: {first_line(error)}",
            f"leave {tool} out of ptq.others; --debug shows all of it",
        ) from error


def _by_nncf(model: Any, batches: Sequence[Tensor]) -> Any:
    """NNCF's basic quantization: symmetric or not by activation, fast bias correction, weights per channel."""
    import nncf

    name = model.graph.input[0].name
    with _quiet(getLogger("nncf")):
        images = [{name: image[None].numpy()} for batch in batches for image in batch]
        found = nncf.quantize(model, nncf.Dataset(images), subset_size=len(images))
    _store_integers(found)
    return found


def _by_onnxruntime(model: Any, batches: Sequence[Tensor]) -> Any:
    """ONNX Runtime's static quantization: pairs of quantize and dequantize, MinMax ranges, weights per channel."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(batches)

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.left, None)
            return None if batch is None else {model.graph.input[0].name: batch.numpy()}

    with tempfile.TemporaryDirectory(prefix="raq-quantize-") as folder, _quiet(getLogger()):
        path = Path(folder) / "quantized.onnx"
        quantize_static(
            model, str(path), Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
        )  # fmt: skip
        return onnx.load(str(path))


QUANTIZERS |= {"nncf": _by_nncf, "onnxruntime": _by_onnxruntime}


@contextmanager
def _quiet(logger: Logger) -> Iterator[None]:
    """Errors alone of what a tool logs meanwhile."""
    before = logger.level
    logger.setLevel("ERROR")
    try:
        yield
    finally:
        logger.setLevel(before)


def _store_integers(model: Any) -> None:
    """Weights as the integers that they are quantized to, in place: NNCF leaves floats, and what rounds them."""
    from onnx import numpy_helper

    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    left = []
    for node in model.graph.node:
        given = [tensors.get(name) for name in node.input]
        if node.op_type != "QuantizeLinear" or len(given) != 3 or None in given:
            left.append(node)
            continue
        weight, scale, zero = (numpy_helper.to_array(tensor) for tensor in given)
        axis = next((entry.i for entry in node.attribute if entry.name == "axis"), 1)
        sides = [-1 if side == axis % weight.ndim else 1 for side in range(weight.ndim)] if scale.size > 1 else []
        limits = np.iinfo(zero.dtype)
        rounded = np.rint(weight / scale.reshape(sides)) + zero.reshape(sides)  # half to even, as QuantizeLinear does
        integers = np.clip(rounded, limits.min, limits.max).astype(zero.dtype)
        model.graph.initializer.append(numpy_helper.from_array(integers, node.output[0]))
    copies = [type(node).FromString(node.SerializeToString()) for node in left]
    del model.graph.node[:]
    model.graph.node.extend(copies)
    used = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    copies = [type(tensor).FromString(tensor.SerializeToString()) for tensor in kept]
    del model.graph.initializer[:]
    model.graph.initializer.extend(copies)
