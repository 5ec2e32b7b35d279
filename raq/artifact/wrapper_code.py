"""The C++ that Inductor generates for a package, read: its constants, and the kernels that it calls."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from raq.artifact.cpp import CodeLine, Deadline

MAX_SIZE, MAX_DIMENSIONS, MAX_CONSTANTS = 2**48, 16, 200_000
KERNEL = re.compile(r"\baoti_torch_(?:cpu|cuda|mkldnn)_\w+\(")
OPAQUE = "aoti_torch_proxy_executor_call_function("
WEIGHT_ONLY_KERNEL = "_weight_int8pack_mm"  # floats by int8 weights: no integer arithmetic
INTEGER = re.compile(r"_q(conv|linear)")
FLOAT = re.compile(r"_(convolution|conv[123]d|linear|addmm|baddbmm|bmm|mm)(_|$)|scaled_dot_product")


# Library calls that do no products of the kind that is counted: whatever is neither of these nor of those above counts
# as a kernel of unknown size.
PLAIN = re.compile(
    r"_(?:_?adaptive_(?:avg|max)_pool[123]d|(?:avg|max|mkldnn_max|fractional_max)_pool[123]d\w*|clone|copy_?|empty\w*|zeros\w*"
    r"|ones\w*|full\w*|_to_copy|to_sparse|index\w*|gather|scatter\w*|sort\w*|topk|unique\w*|nonzero|cumsum|cumprod|view\w*"
    r"|reshape|permute|as_strided|slice\w*|select\w*|cat|constant_pad_nd|pad|reflection_pad[123]d|replication_pad[123]d"
    r"|rand\w*|bernoulli\w*|embedding\w*|_embedding_bag\w*|upsample_\w+|_upsample_\w+|grid_sampler_\w+|histc|masked_\w+"
    r"|fill\w*|narrow|repeat_interleave\w*|roll|flip|kthvalue|median|mode|searchsorted\w*|bucketize\w*|device_type|wrapper_fp32)$"
)
CONSTANT = re.compile(r"constants_info_\[(\d{1,7})\]\.(name|dtype|data_size|shape|original_fqn) = (.*);")
SIZES = re.compile(r'assert_size_stride\((\w+), \{([^}]*)\}, \{[^}]*\}, ("(?:[^"\\]|\\.)*")')
ARRAY = re.compile(r"int64_t (int_array_\d+)\[\] = \{([^}]*)\}")
ALLOCATION = re.compile(r"aoti_torch_empty_strided\(\d+, (int_array_\d+), .*&(\w+)_handle\)")
WEIGHT_SCALE = re.compile(r"'w_scale': (\w+)")
WORD = re.compile(r"\b[A-Za-z_]\w*\b")
ITEM_BYTES = {"float64": 8, "int64": 8, "float32": 4, "int32": 4, "float16": 2, "bfloat16": 2, "int16": 2}


@dataclass(frozen=True)
class Constant:
    """A tensor in the package. stored_bytes: as packed for the kernel, with padding; used: the code reads it."""

    name: str
    source: str
    dtype: str
    shape: tuple[int, ...]
    stored_bytes: int
    used: bool

    @property
    def bytes(self) -> int:
        """Bytes of its numbers alone: elements times the size of one; an expanded one holds each number once."""
        return min(self.stored_bytes, math.prod(self.shape) * ITEM_BYTES.get(self.dtype, 1))


@dataclass(frozen=True)
class KernelCall:
    """A call of a convolution or matrix kernel. What the code does not show is None.

    macs: multiply-accumulates an image; layer: the module, by the name of its bias; weight: name of the constant;
    weight_scale: the quantized program's name of its scale; names: what the file calls
    this call, where it has names.
    """

    kernel: str
    integer: bool
    layer: str | None
    weight: str | None
    weight_scale: str | None
    weight_shape: tuple[int, ...] | None
    output_shape: tuple[int, ...] | None
    macs: int | None
    names: tuple[str, ...] = ()


def read_constants(lines: list[CodeLine]) -> list[Constant]:
    """The constants that the C++ declares; ValueError if one is not whole."""
    fields: dict[int, dict[str, str]] = {}
    last = 0
    for number, line in enumerate(lines):
        match = _match_at(CONSTANT, line.text, "constants_info_[")
        if match:
            fields.setdefault(int(match.group(1)), {})[match.group(2)] = match.group(3)
        if "constants_->at(" in line.code:
            last = number
    if len(fields) > MAX_CONSTANTS:
        raise ValueError(f"{len(fields)} constants")
    names = {entry["name"].strip('"') for entry in fields.values() if "name" in entry}
    read = {word[0] for line in lines[last + 1 :] for word in WORD.finditer(line.code) if word[0] in names}
    return [
        Constant(
            entry["name"].strip('"'),
            entry["original_fqn"].strip('"'),
            entry["dtype"].removeprefix("cached_torch_dtype_"),
            _sizes(re.findall(r"\d+", entry["shape"])),
            _sizes([entry["data_size"]])[0],
            entry["name"].strip('"') in read,
        )
        for _, entry in sorted(fields.items())
    ]


def _match_at(pattern: re.Pattern[str], line: str, begin: str) -> re.Match[str] | None:
    """The pattern where the line first has its beginning: one try a line, however often that is repeated in it."""
    at = line.find(begin)
    return pattern.match(line, at) if at >= 0 else None


def read_calls(lines: list[CodeLine], constants: dict[str, Constant], deadline: Deadline) -> list[KernelCall]:
    """The calls of library kernels in the C++, in its order.

    constants: by the name of their variable. Raises ValueError if it takes longer than `deadline`.
    """
    arrays, allocated, written, origins = _buffers(lines)
    shapes = {name: _without_batch(sizes) for name, sizes in {**arrays, **allocated, **written}.items()}
    weights = {name: constant.shape for name, constant in constants.items() if len(constant.shape) > 1}
    # weights that are not frozen are copied into a buffer first: one whose sizes are all numbers
    copied = {buffer: _numbers(sizes) for buffer, sizes in allocated.items() if re.fullmatch(r"[\dL, ]+", sizes)}
    found = []
    for number, line in enumerate(lines):
        if number % 1000 == 0:
            deadline.check()
        if OPAQUE in line.code:
            found.append(KernelCall(OPAQUE.rstrip("("), False, None, None, None, None, None, None))
        match = KERNEL.search(line.code) if "aoti_torch_" in line.code else None
        if match is None:
            continue
        if KERNEL.search(line.code, match.end()) or not line.code.rstrip().endswith(");"):
            raise ValueError(f"it calls {match[0][:60]} in a form that the compiler does not write")
        kernel, names = match[0].rstrip("("), WORD.findall(line.code, match.end())
        integer, floating = bool(INTEGER.search(kernel)), bool(FLOAT.search(kernel))
        if not integer and not floating:
            if not PLAIN.search(kernel):
                found.append(KernelCall(kernel, False, None, None, None, None, None, None))
            continue
        weight = next((n for n in names if n in weights), None) or next((n for n in names[1:] if n in copied), None)
        weight_shape = weights.get(weight or "") or copied.get(weight or "")
        output = next((n.removesuffix("_handle") for n in reversed(names) if n.endswith("_handle")), (names or [""])[0])
        after = names[names.index(weight) + 1 :] if weight else []
        # a residual sum is written into the buffer that is added, which has no shape of its own
        shape = shapes.get(output) or next((shapes[n] for n in after if n in shapes), None)
        matched = WEIGHT_SCALE.search(origins.get(output, ""))
        scale = matched.group(1) if matched else after[0] if integer and after and after[0] in constants else None
        modules = [_module(constants[n].source) for n in names if n in constants]
        found.append(
            KernelCall(
                kernel,
                integer,
                next(filter(None, modules), None),
                weight if weight in constants else None,
                scale,
                weight_shape,
                shape,
                _macs(kernel, weight_shape, shape),
            )
        )
    return found


def _buffers(
    lines: Iterable[CodeLine],
) -> tuple[dict[str, str], dict[str, str], dict[str, str], dict[str, str]]:
    """Arrays of sizes, sizes of buffers that are allocated, of those that kernels give, and what those came from."""
    arrays: dict[str, str] = {}
    allocated: dict[str, str] = {}
    written: dict[str, str] = {}
    origins: dict[str, str] = {}
    for line in lines:
        if match := _match_at(ARRAY, line.code, "int64_t int_array_"):
            arrays[match.group(1)] = match.group(2)
        elif match := _match_at(ALLOCATION, line.code, "aoti_torch_empty_strided("):
            allocated[match.group(2)] = arrays.get(match.group(1), "")
        elif match := _match_at(SIZES, line.text, "assert_size_stride("):
            written.setdefault(match.group(1), match.group(2))
            origins.setdefault(match.group(1), match.group(3))
    return arrays, allocated, written, origins


def _module(source: str) -> str:
    """The module that a tensor belongs to: "layer1.0.conv1" of "layer1.0.conv1.weight_bias"; "" if it is not known."""
    module, _, tensor = source.rpartition(".")
    return module if tensor in ("weight", "bias", "weight_bias") else ""


def _without_batch(sizes: str) -> tuple[int, ...]:
    """A shape's numbers. The batch is a symbol; a linear layer over tokens has it times their number: 197L*s6."""
    first, _, others = sizes.partition(",")
    tokens = math.prod(_numbers(first))
    return (tokens, *_numbers(others)) if tokens != 1 else _numbers(others)


def _numbers(sizes: str) -> tuple[int, ...]:
    return _sizes(re.findall(r"\b(\d+)L?\b", sizes))


def _sizes(numbers: list[str]) -> tuple[int, ...]:
    """Sizes that a tensor can have; ValueError for others."""
    if len(numbers) > MAX_DIMENSIONS or any(len(number) > 15 or int(number) > MAX_SIZE for number in numbers):
        raise ValueError("a tensor in it has sizes that none has")
    return tuple(int(number) for number in numbers)


def _macs(kernel: str, weight: tuple[int, ...] | None, output: tuple[int, ...] | None) -> int | None:
    """Multiply-accumulates an image; of a linear kernel's weight, maybe packed transposed, the size counts."""
    if weight is None or output is None:
        return None
    if "conv" in kernel:
        return math.prod(output) * math.prod(weight[1:])
    if "bmm" in kernel:  # its weight is one matrix a batch, expanded or not
        return math.prod(output) * weight[-2]
    return math.prod(weight) * math.prod(output[:-1])
