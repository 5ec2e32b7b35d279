"""Is it quantized? What the graph says of each layer, and what the generated code really calls.

The share of multiply-accumulates in int8 is read from the lowered program: the layers that the graph means to be int8
count only if the generated code calls as many integer kernels, and no more float ones than there are float layers.
Nothing of an artifact is executed.
"""

import re
import zipfile
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram

from raq.errors import StageError
from raq.quantize.capture import layers

CALL = re.compile(r"\baoti_torch_(?:cpu|cuda|mkldnn)_\w+(?=\()")
INTEGER = re.compile(r"_q(conv|linear)")
FLOAT = re.compile(r"_(convolution|linear|addmm|baddbmm|bmm|mm)(_|$)")


@dataclass(frozen=True)
class LayerAudit:
    """One convolution or linear layer: is it int8 in the graph, and if not, why."""

    name: str
    operator: str
    macs: int
    int8: bool
    reason: str


@dataclass(frozen=True)
class Audit:
    """What is known of a lowered program. int8_mac_share is None if the code and the graph cannot be matched."""

    layers: list[LayerAudit]
    kernels: dict[str, int]
    int8_mac_share: float | None
    problem: str

    def as_record(self) -> dict[str, Any]:
        """As plain values, for a record."""
        return asdict(self)

    def float_layers(self) -> list[str]:
        """Names of the layers that compute in float, the costliest first."""
        return [layer.name for layer in sorted(self.layers, key=lambda entry: -entry.macs) if not layer.int8]


def audit_graph(program: ExportedProgram) -> list[LayerAudit]:
    """Each convolution and linear layer of an exported program, with what its operands say."""
    found = []
    for node, layer in layers(program.graph):
        data, weight = _operands(node)
        weight_dtype, data_dtype = _dequantized_from(weight), _dequantized_from(data)
        reason = ""
        if weight_dtype is not torch.int8:
            reason = "weights are float"
        elif data_dtype not in (torch.uint8, torch.int8):
            reason = "its input is float"
        found.append(LayerAudit(layer.name, layer.operator, layer.macs, not reason, reason))
    return found


def audit_artifact(program: ExportedProgram, artifact: Path) -> Audit:
    """Match the program's layers with the kernels that the artifact's generated code calls."""
    found, kernels = audit_graph(program), called_kernels(artifact)
    integer = sum(n for name, n in kernels.items() if INTEGER.search(name))
    floating = sum(n for name, n in kernels.items() if not INTEGER.search(name))
    expected = sum(layer.int8 for layer in found)
    total = sum(layer.macs for layer in found)
    share: float | None = None
    problem = ""
    if integer == 0:
        share = 0.0
        problem = (
            f"the generated code calls no integer kernel; the graph has {expected} int8 layers" if expected else ""
        )
    elif integer == expected and floating <= len(found) - expected:
        share = sum(layer.macs for layer in found if layer.int8) / total
    else:
        problem = (
            f"the generated code calls {integer} integer and {floating} float kernels; the graph has {expected} "
            f"int8 and {len(found) - expected} float layers"
        )
    return Audit(found, kernels, share, problem)


def called_kernels(artifact: Path) -> dict[str, int]:
    """How often the generated C++ inside an AOTInductor package calls each convolution or matrix kernel.

    Raises StageError if the file is no such package.
    """
    try:
        with zipfile.ZipFile(artifact) as package:
            sources = [package.read(name).decode() for name in package.namelist() if name.endswith(".wrapper.cpp")]
    except (OSError, zipfile.BadZipFile) as error:
        raise StageError(f"{artifact}: not a readable package: {error}", "run again to make it anew") from None
    if not sources:
        raise StageError(f"{artifact}: the package holds no generated C++", "it cannot be checked; lower it with raq")
    calls = Counter(name for source in sources for name in CALL.findall(source))
    return {name: n for name, n in sorted(calls.items()) if INTEGER.search(name) or FLOAT.search(name)}


def _operands(node: fx.Node) -> tuple[Any, Any]:
    """The data and weight arguments of a convolution or linear node."""
    matmul = getattr(node.target, "overloadpacket", None) is torch.ops.aten.addmm
    return (node.args[1], node.args[2]) if matmul else (node.args[0], node.args[1])


def _dequantized_from(value: Any) -> torch.dtype | None:
    """The integer type that a dequantize node reads, or None for anything else; views in between are looked through."""
    looked_through = (
        torch.ops.aten.view,
        torch.ops.aten.reshape,
        torch.ops.aten.flatten,
        torch.ops.aten.permute,
        torch.ops.aten.transpose,
        torch.ops.aten.t,
        torch.ops.aten.dropout,
    )
    while isinstance(value, fx.Node) and getattr(value.target, "overloadpacket", None) in looked_through:
        value = value.args[0]
    if not isinstance(value, fx.Node) or "dequantize_per_" not in str(value.target):
        return None
    source = value.args[0]
    assert isinstance(source, fx.Node)
    dtype: torch.dtype = source.meta["val"].dtype
    return dtype
