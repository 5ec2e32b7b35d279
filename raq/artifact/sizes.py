"""The size ledger: where the bytes of an artifact are. MB is 10^6 bytes elsewhere; here all is in bytes.

A constant's `bytes` are its numbers; `stored_bytes` what the package holds for it, packed and padded for its kernel.
"""

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from torch.export import ExportedProgram

from raq.artifact.generated_code import GeneratedCode

FLOATS = ("float16", "bfloat16", "float32", "float64")


@dataclass(frozen=True)
class Entry:
    """One constant of the package."""

    name: str
    dtype: str
    shape: list[int]
    bytes: int
    stored_bytes: int
    kernel: str | None


@dataclass(frozen=True)
class Ledger:
    """by_dtype: bytes of constants; code_bytes: native code without them; duplicates: float copies of int8 weights."""

    file_bytes: int
    native_bytes: int
    code_bytes: int
    constant_bytes: int
    stored_constant_bytes: int
    weight_bytes: int
    scale_bytes: int
    by_dtype: dict[str, int]
    constants: list[Entry]
    duplicates: list[str]

    def as_record(self) -> dict[str, Any]:
        """As plain values, for a record."""
        return asdict(self)


def ledger(code: GeneratedCode) -> Ledger:
    """The ledger of a package that was read."""
    kernels = {call.weight: call.kernel for call in code.calls if call.weight is not None}
    by_dtype: Counter[str] = Counter()
    for constant in code.constants:
        by_dtype[constant.dtype] += constant.bytes
    stored = sum(constant.stored_bytes for constant in code.constants)
    weights = [constant for constant in code.constants if len(constant.shape) > 1]
    integers = {_form(constant.shape) for constant in weights if constant.dtype in ("int8", "uint8")}
    duplicates = [
        constant.name
        for constant in weights
        if constant.dtype in FLOATS and not constant.used and _form(constant.shape) in integers
    ]
    return Ledger(
        code.file_bytes,
        code.native_bytes,
        max(0, code.native_bytes - stored),
        sum(constant.bytes for constant in code.constants),
        stored,
        sum(constant.bytes for constant in weights),
        sum(constant.bytes for constant in code.constants if len(constant.shape) <= 1),
        dict(sorted(by_dtype.items())),
        [Entry(c.name, c.dtype, list(c.shape), c.bytes, c.stored_bytes, kernels.get(c.name)) for c in code.constants],
        duplicates,
    )


def float_copies(program: ExportedProgram) -> list[str]:
    """Float tensors of a quantized program that have the shape of one of its int8 weights: the weights it replaced."""
    tensors = {**program.state_dict, **program.constants}
    shaped = {name: tensor for name, tensor in tensors.items() if getattr(tensor, "ndim", 0) > 1}
    integers = {_form(tuple(t.shape)) for t in shaped.values() if not t.is_floating_point()}
    signature = program.graph_signature
    names = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    read = {names[node.name] for node in program.graph.nodes if node.name in names and node.users}
    return sorted(
        name
        for name, tensor in shaped.items()
        if tensor.is_floating_point() and name not in read and _form(tuple(tensor.shape)) in integers
    )


def _form(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape whatever its layout: packed weights may be transposed."""
    return tuple(sorted(shape))


def as_in_torch(code: GeneratedCode) -> int:
    """Bytes that the constants of an ONNX file would have in a program of torch, whose zero points have 8 bytes each.

    So that the weights of what other tools quantize are measured as raq's own are.
    """
    zero_points = [each for each in code.constants if len(each.shape) < 2 and each.dtype in ("int8", "uint8")]
    return sum(each.bytes for each in code.constants) + sum(7 * each.bytes for each in zero_points)
