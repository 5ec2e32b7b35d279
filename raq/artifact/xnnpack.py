"""What an ExecuTorch program computes: its plan, and the graphs of XNNPACK that it delegates to, read."""

import json
import math
import re
import tempfile
from importlib import resources
from pathlib import Path
from typing import Any

from raq.artifact.generated_code import MAX_METADATA_BYTES
from raq.artifact.scales import bytes_digest
from raq.artifact.wrapper_code import Constant, KernelCall

NOT_FINITE = re.compile(r":\s*[-+]?(?:inf|nan)\b")  # flatc prints them; JSON has none
MAX_TIMES_PAYLOAD = 100  # what no honest graph exceeds, written as JSON
DIGEST = re.compile(r"[0-9a-f]{64}")
ITEM_TYPES = {"qint8": "int8", "qcint8": "int8", "quint8": "uint8", "qint32": "int32", "qcint32": "int32",
              "fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "qcint4": "int4"}  # fmt: skip
INTEGERS = ("qint8", "qcint8", "quint8")


# XNNPACK's nodes that multiply, and where ExecuTorch's own operators that do have their weight
CONVOLUTIONS, TRANSPOSED = ("XNNConv2d", "XNNDepthwiseConv2d"), "XNNConvTranspose2d"
MULTIPLYING = (*CONVOLUTIONS, TRANSPOSED, "XNNFullyConnected", "XNNBatchMatrixMultiply", "XNNScaledDotProductAttention")
OPERATORS = {"aten::convolution": 1, "aten::linear": 1, "aten::addmm": 2, "aten::mm": 1, "aten::bmm": None}
Graph = dict[str, Any]


class ProgramReader:
    """Collects constants and calls of a plan and its delegates."""

    def __init__(self, file: Any) -> None:
        self.program = file.program
        named = file.named_data
        self.named = {key: named.buffers[entry.buffer_index] for key, entry in named.pte_data.items()} if named else {}
        self.constants: dict[str, Constant] = {}
        self.calls: list[KernelCall] = []
        self.graphs: dict[int, Graph] = {}  # of XNNPACK, by the delegate's number

    def read(self, plan: Any) -> None:
        """Read all instructions, in order."""
        for chain in plan.chains:
            for instruction in chain.instructions:
                arguments = instruction.instr_args
                if type(arguments).__name__ == "DelegateCall":
                    self._delegate(arguments.delegate_index, plan.delegates[arguments.delegate_index])
                elif type(arguments).__name__ == "KernelCall":
                    self._operator(plan, plan.operators[arguments.op_index].name, arguments.args)

    def _operator(self, plan: Any, name: str, arguments: list[int]) -> None:
        """One of ExecuTorch's own operators: those that multiply do so in float."""
        if name not in OPERATORS:
            return
        at, batch = OPERATORS[name], plan.values[plan.inputs[0]].val.sizes[0]
        output = plan.values[arguments[-1]].val.sizes
        weight = None if at is None else plan.values[arguments[at]].val
        shape = None if weight is None else tuple(weight.sizes)
        if weight is not None and weight.data_buffer_idx:
            stored = len(self.program.constant_buffer[weight.data_buffer_idx].storage)
            constant = f"buffer {weight.data_buffer_idx}"
            dtype = weight.scalar_type.name.lower().replace("float", "float32")
            self.constants.setdefault(constant, Constant(constant, constant, dtype, shape or (), stored, True))
        macs = None
        if shape is not None:
            tokens = math.prod(output[:-1]) // max(1, batch)
            macs = math.prod(output[1:]) * math.prod(shape[1:]) if "conv" in name else math.prod(shape) * tokens
        self.calls.append(KernelCall(name, False, None, None, None, shape, tuple(output[1:]), macs))

    def _delegate(self, number: int, delegate: Any) -> None:
        if delegate.id != "XnnpackBackend":
            raise ValueError(f"it calls the backend {delegate.id}, which is not known here")
        if number not in self.graphs:
            payload = bytes(self.program.backend_delegate_data[delegate.processed.index].data)
            self.graphs[number] = _xnnpack_graph(payload)
            for index, buffer in enumerate(self.graphs[number].get("constant_data", [])):
                buffer.setdefault("named_key", "")
                buffer["name"] = _name(buffer, f"constant {number}.{index}")
        graph = self.graphs[number]
        values = {value["id_out"]: value for value in map(_tensor, graph["xvalues"])}
        buffers = graph.get("constant_data", [])
        for value in values.values():
            self._constant(buffers, value["constant_buffer_idx"], value["dtype"], tuple(value["dims"]))
            if value["scales"] is not None:
                self._constant(buffers, value["scales"], "fp32", (value["channels"],))
        for node in graph["xnodes"]:
            if node["xnode_union_type"] in MULTIPLYING:
                self._node(node["xnode_union_type"], node["xnode_union"], values, buffers)

    def _constant(self, buffers: list[Graph], index: int, dtype: str, shape: tuple[int, ...]) -> None:
        if index:
            name = buffers[index]["name"]
            stored = int(buffers[index]["size"])
            known = Constant(name, name, ITEM_TYPES.get(dtype, dtype), shape, stored, True)
            self.constants.setdefault(name, known)

    def _node(self, kind: str, node: Graph, values: dict[int, Graph], buffers: list[Graph]) -> None:
        """A node of XNNPACK's graph that multiplies."""
        source, weight, output = (values.get(node.get(key, -1)) for key in ("input1_id", "filter_id", "output_id"))
        integer = all(value is not None and value["dtype"] in INTEGERS for value in (source, weight, output))
        types = " x ".join(value["dtype"] for value in (source, weight) if value is not None)
        scale = None
        if weight is not None and weight["scales"] is not None:
            content = self.named.get(buffers[weight["scales"]].get("named_key", ""))
            scale = None if content is None else bytes_digest(bytes(content))
        index = weight["constant_buffer_idx"] if weight is not None else 0
        self.calls.append(
            KernelCall(
                f"{kind} {types}",
                integer,
                None,
                buffers[index]["name"] if index else None,
                scale,
                tuple(weight["dims"]) if weight is not None else None,
                tuple(output["dims"][1:]) if output is not None else None,
                _macs(kind, node, source, weight, output),
            )
        )


def _name(buffer: Graph, otherwise: str) -> str:
    """What a constant is called: ExecuTorch names them by their SHA-256, of which twelve digits do."""
    return DIGEST.sub(lambda match: match[0][:12], str(buffer["named_key"] or otherwise))


def _tensor(value: Graph) -> Graph:
    """A value of XNNPACK's graph, whether it is quantized or not; scales: the buffer that holds a weight's."""
    inner, quantized = value["xvalue_union"], value["xvalue_union_type"] == "XNNQuantizedTensorValue"
    tensor = inner["tensor_value"] if quantized else inner
    parameters = inner.get("quant_params", {}) if quantized else {}
    scales = parameters.get("scale_buffer_idx", 0)
    return {
        "id_out": tensor["id_out"],
        "dims": tensor.get("dims", []),
        "constant_buffer_idx": tensor.get("constant_buffer_idx", 0),
        "dtype": str(tensor["datatype"]).removeprefix("xnn_datatype_"),
        "scales": scales if 0 < scales < 2**32 - 1 else None,
        "channels": parameters.get("num_scales", 0),
    }


def _macs(kind: str, node: Graph, source: Graph | None, weight: Graph | None, output: Graph | None) -> int | None:
    """Multiply-accumulates an image. Activations are [n, H, W, C]; n is whatever the exporter took for an example."""
    if source is None or weight is None or output is None:
        return None
    if kind in (*CONVOLUTIONS, TRANSPOSED):
        inputs = node["kernel_height"] * node["kernel_width"] * node["group_input_channels"]
        places = math.prod((source if kind == TRANSPOSED else output)["dims"][1:3])
        return int(places * inputs * node["group_output_channels"] * node["groups"])
    if kind == "XNNFullyConnected":
        return int(math.prod(weight["dims"]) * math.prod(output["dims"][1:-1]))
    return None


def _xnnpack_graph(payload: bytes) -> Graph:
    """XNNPACK's graph out of a delegate's bytes, as plain values (through flatc, which comes with ExecuTorch)."""
    from executorch.backends.xnnpack import serialization
    from executorch.backends.xnnpack.serialization.xnnpack_graph_serialize import XNNHeader
    from executorch.exir._serialize._flatbuffer import _flatc_decompile

    header = XNNHeader.from_bytes(payload[: XNNHeader.EXPECTED_LENGTH])
    if not header.is_valid() or header.flatbuffer_offset + header.flatbuffer_size > len(payload):
        raise ValueError("XNNPACK's graph in it is damaged")
    with tempfile.TemporaryDirectory(prefix="raq-pte-") as folder:
        schema, graph = Path(folder) / "schema.fbs", Path(folder) / "graph.bin"
        schema.write_bytes(resources.files(serialization).joinpath("schema.fbs").read_bytes())
        graph.write_bytes(payload[header.flatbuffer_offset : header.flatbuffer_offset + header.flatbuffer_size])
        _flatc_decompile(folder, str(schema), str(graph))
        if graph.with_suffix(".json").stat().st_size > MAX_TIMES_PAYLOAD * len(payload) + MAX_METADATA_BYTES:
            raise ValueError("XNNPACK's graph in it unpacks to many times its size")
        text = graph.with_suffix(".json").read_text()
    found: Graph = json.loads(NOT_FINITE.sub(": null", text))
    return found
