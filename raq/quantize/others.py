"""Quantization after training by other tools, as their users call it: NNCF's and ONNX Runtime's, of an ONNX model.

raq hands over the FP32 network with batch norms folded, and calibration images; what is quantized, and over which
ranges, is the tool's choice. NNCF: `nncf.quantize` by its defaults, as a transformer where there is attention. ONNX
Runtime: `quantize_static` with pairs of QuantizeLinear and DequantizeLinear, MinMax ranges, weights per channel, and
unsigned activations with signed weights, which its guide names for x86; it is told where int8 sums may saturate.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from logging import Logger, getLogger
from pathlib import Path
from typing import Any

import numpy as np

from raq.environment import environment_kept
from raq.errors import RaqError, StageError, first_line
from raq.lazy import require_library
from raq.quantize.calibration import CalibrationBatches


def quantize_by(tool: str, model: Any, batches: CalibrationBatches, *, reduce_range: bool) -> None:
    """Quantize a model (onnx.ModelProto) in place by `nncf` or `onnxruntime`.

    reduce_range: for a CPU whose kernels could saturate. Raises UserError if the tool is not installed, StageError if
    it fails.
    """
    with environment_kept(NNCF_CI="1"):  # else it reports its use to its makers, without being asked to
        require_library(tool, tool)
        try:
            model.CopyFrom(QUANTIZERS[tool](model, batches, reduce_range))
        except RaqError:
            raise  # of the images, which are read meanwhile
        except Exception as error:  # its kinds of error are its own
            raise StageError(
                f"{tool} cannot quantize the network: {first_line(error)}",
                f"leave {tool} out of ptq.others; --debug shows all of it",
            ) from error


def _by_nncf(model: Any, batches: CalibrationBatches, reduce_range: bool) -> Any:
    """Symmetric or not by what its preset says, weights per channel, fast bias correction.

    It rounds the first layer's weights to 7 bits by itself where a CPU could saturate.
    """
    import nncf

    names = [given.name for given in model.graph.input]
    kind = nncf.ModelType.TRANSFORMER if _has_attention(model) else None
    with _quiet(getLogger("nncf")):
        data = nncf.Dataset(_Samples(names, batches))
        found = nncf.quantize(model, data, subset_size=batches.samples, model_type=kind)
    _store_integers(found)
    return found


class _Samples:
    """One sample after the other, as NNCF reads them, from the beginning as often as it likes."""

    def __init__(self, names: list[str], batches: CalibrationBatches) -> None:
        self.names, self.batches = names, batches

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self.batches:
            for sample in zip(*batch, strict=True):
                yield {name: value[None].numpy() for name, value in zip(self.names, sample, strict=True)}


def _has_attention(model: Any) -> bool:
    """Whether the graph multiplies by what a softmax gives."""
    weights = {name for node in model.graph.node if node.op_type == "Softmax" for name in node.output}
    return any(node.op_type == "MatMul" and weights & set(node.input) for node in model.graph.node)


def _by_onnxruntime(model: Any, batches: CalibrationBatches, reduce_range: bool) -> Any:
    """See above; reduce_range: weights of 7 bits, as its guide says for CPUs without VNNI."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(batches)

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.left, None)
            names = (given.name for given in model.graph.input)
            return None if batch is None else {n: v.numpy() for n, v in zip(names, batch, strict=True)}

    with tempfile.TemporaryDirectory(prefix="raq-quantize-") as folder, _quiet(getLogger()):
        path = Path(folder) / "quantized.onnx"
        quantize_static(
            model, str(path), Reader(), quant_format=QuantFormat.QDQ, per_channel=True, reduce_range=reduce_range,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
        )  # fmt: skip
        return onnx.load(str(path))


QUANTIZERS: dict[str, Callable[[Any, CalibrationBatches, bool], Any]] = {
    "nncf": _by_nncf,
    "onnxruntime": _by_onnxruntime,
}


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

    graph = model.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    left = []
    for node in graph.node:
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
        graph.initializer.append(numpy_helper.from_array(integers, node.output[0]))
    copies = [type(node).FromString(node.SerializeToString()) for node in left]
    del graph.node[:]
    graph.node.extend(copies)
    used = set(_read(graph)) | {value.name for value in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    copies = [type(tensor).FromString(tensor.SerializeToString()) for tensor in kept]
    del graph.initializer[:]
    graph.initializer.extend(copies)


def _read(graph: Any) -> Iterator[str]:
    """The tensors that nodes read, also those of graphs inside of nodes."""
    for node in graph.node:
        yield from node.input
        for entry in node.attribute:
            for inner in (*entry.graphs, *([entry.g] if entry.HasField("g") else [])):
                yield from _read(inner)
                yield from (value.name for value in inner.output)
