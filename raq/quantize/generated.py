"""What an AOTInductor package really runs, read from the C++ that it carries, without loading or executing any of it.

The package is a zip: native code, the C++ that it was compiled from, and metadata. The C++ names every constant
with its type and shape, and every call of a library kernel with its weight and output. The kernels that it calls must
be those that the native code imports. That finds mistakes and files that were mixed up, not a determined forger.
"""

import json
import math
import re
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raq.errors import StageError

METADATA_KEY = "raq"
KERNEL = re.compile(r"\b(aoti_torch_(?:cpu|cuda|mkldnn)_\w+)\((.*)\)\);")
INTEGER = re.compile(r"_q(conv|linear)")
FLOAT = re.compile(r"_(convolution|conv[123]d|linear|addmm|baddbmm|bmm|mm)(_|$)|scaled_dot_product")
CONSTANT = re.compile(r"constants_info_\[(\d+)\]\.(name|dtype|data_size|shape|original_fqn) = (.*);")
SIZES = re.compile(r'assert_size_stride\((\w+), \{([^}]*)\}, \{[^}]*\}, ("(?:[^"\\]|\\.)*")')
ARRAY = re.compile(r"int64_t (int_array_\d+)\[\] = \{([^}]*)\}")
ALLOCATION = re.compile(r"aoti_torch_empty_strided\(\d+, (int_array_\d+), .*&(\w+)_handle\)")
WEIGHT_SCALE = re.compile(r"'w_scale': (\w+)")
IMPORTED = re.compile(rb"\0(aoti_torch_(?:cpu|cuda|mkldnn)_\w+)(?=\0)")
ITEM_BYTES = {"float64": 8, "int64": 8, "float32": 4, "int32": 4, "float16": 2, "bfloat16": 2, "int16": 2}
# what no honest package exceeds; a reader of strangers' files must end
LONGEST_SIDE = 4096  # pixels of an image that is still one
MOST_SOURCE_BYTES, MOST_METADATA_BYTES, LONGEST_LINE, MOST_TIMES_FILE = 64_000_000, 1_000_000, 20_000, 4
DAMAGE = (
    OSError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, RecursionError, ValueError,
    KeyError, IndexError, TypeError, AttributeError, OverflowError,
)  # fmt: skip


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
    """A call of a convolution or matrix kernel. What the code does not tell is None.

    macs: multiply-accumulates an image; layer: the module, as its bias tells it; weight: name of the constant;
    weight_scale: the quantized program's name of its scale.
    """

    kernel: str
    integer: bool
    layer: str | None
    weight: str | None
    weight_scale: str | None
    weight_shape: tuple[int, ...] | None
    output_shape: tuple[int, ...] | None
    macs: int | None


@dataclass(frozen=True)
class GeneratedCode:
    """A package's constants, kernel calls in order, and metadata.

    Under `METADATA_KEY` of the metadata stands what raq wrote there: candidate, model, input, normalisation, torch.
    """

    constants: list[Constant]
    calls: list[KernelCall]
    metadata: dict[str, Any]
    native_bytes: int
    file_bytes: int


def read_package(path: Path) -> GeneratedCode:
    """Read a package; nothing of it is loaded as code.

    Raises StageError if the file is damaged, is no such package, or its C++ and its native code do not belong together.
    """
    try:
        files = _files(path, whole=True)
        metadata = _metadata(files)
        sources = {name.removesuffix(".cpp"): text for name, text in files.items() if name.endswith(".wrapper.cpp")}
        binaries = {name.removesuffix(".so"): content for name, content in files.items() if name.endswith(".so")}
        if not sources or set(sources) != set(binaries):
            raise ValueError("it does not hold one binary for each generated C++ file")
        constants: list[Constant] = []
        calls: list[KernelCall] = []
        for name, content in sources.items():
            if len(content) > MOST_SOURCE_BYTES:
                raise ValueError(f"{len(content) / 1e6:.0f} MB of C++")
            lines = _code_lines(content.decode(errors="replace"))
            own = _constants(lines)
            called = _calls(lines, {constant.name: constant for constant in own})
            _match_binary(called, binaries[name])
            constants += own
            calls += called
    except DAMAGE as error:
        text = str(error) if not isinstance(error, (KeyError, IndexError)) else type(error).__name__
        raise StageError(f"{path}: not a readable package: {text}", "lower it again") from None
    return GeneratedCode(constants, calls, metadata, sum(map(len, binaries.values())), path.stat().st_size)


def read_metadata(path: Path) -> dict[str, Any]:
    """A package's metadata alone; StageError if it is no package."""
    try:
        return _metadata(_files(path, whole=False))
    except DAMAGE as error:
        raise StageError(f"{path}: not a readable package: {error}", "lower it again") from None


def _files(path: Path, *, whole: bool) -> dict[str, bytes]:
    """The package's own files by name, or the metadata alone; checksums are checked by reading."""
    with zipfile.ZipFile(path) as package:
        entries = package.infolist()
        if sum(entry.file_size for entry in entries) > MOST_TIMES_FILE * path.stat().st_size + MOST_METADATA_BYTES:
            raise ValueError("it unpacks to many times its size")
        if len({entry.filename for entry in entries}) < len(entries):
            raise ValueError("it holds two files of one name")
        if whole:
            return {entry.filename: package.read(entry) for entry in entries}
        return {entry.filename: package.read(entry) for entry in entries if _is_metadata(entry.filename)}


def input_shape(metadata: dict[str, Any]) -> tuple[int, ...] | None:
    """[3, H, W] of a package's input, as raq wrote it there; None if it does not tell, or nothing that makes sense."""
    told = (metadata.get(METADATA_KEY) or {}).get("input")
    sizes = tuple(told) if isinstance(told, list) and all(type(size) is int for size in told) else ()
    return sizes if len(sizes) == 3 and all(0 < size <= LONGEST_SIDE for size in sizes) else None


def _is_metadata(name: str) -> bool:
    return name.endswith(".wrapper_metadata.json")


def _metadata(files: dict[str, bytes]) -> dict[str, Any]:
    def refuse(text: str) -> Any:
        raise ValueError(f"{text} in its metadata")

    found: dict[str, Any] = {}
    for name, text in files.items():
        if _is_metadata(name):
            if len(text) > MOST_METADATA_BYTES:
                raise ValueError("its metadata is too large")
            found = json.loads(text, parse_constant=refuse)
    if not isinstance(found, dict):
        raise ValueError("its metadata is no mapping")
    if METADATA_KEY in found:
        found[METADATA_KEY] = json.loads(found[METADATA_KEY], parse_constant=refuse)
        if not isinstance(found[METADATA_KEY], dict):
            raise ValueError("its metadata is no mapping")
    return found


def _code_lines(source: str) -> list[str]:
    """The lines that are code: no comments, and none longer than the compiler writes but for packed layouts."""
    return [line for line in source.splitlines() if not line.lstrip().startswith("//") and len(line) <= LONGEST_LINE]


def _match_binary(calls: list[KernelCall], binary: bytes) -> None:
    """ValueError unless the binary imports the kernels that the C++ calls, and no other of their kind."""
    imported = {name.decode() for name in IMPORTED.findall(binary)}
    imported = {name for name in imported if INTEGER.search(name) or FLOAT.search(name)}
    called = {call.kernel for call in calls}
    if called != imported:
        raise ValueError(
            "its C++ is not what its native code was compiled from: "
            f"only the C++ calls {', '.join(sorted(called - imported)) or 'nothing more'}, "
            f"only the native code {', '.join(sorted(imported - called)) or 'nothing more'}"
        )


def _constants(lines: list[str]) -> list[Constant]:
    fields: dict[int, dict[str, str]] = {}
    last = 0
    for number, line in enumerate(lines):
        match = CONSTANT.search(line) if "constants_info_[" in line else None
        if match:
            fields.setdefault(int(match.group(1)), {})[match.group(2)] = match.group(3)
        if "constants_->at(" in line:
            last = number
    read = set(re.findall(r"\w+", "\n".join(lines[last + 1 :])))
    return [
        Constant(
            entry["name"].strip('"'),
            entry["original_fqn"].strip('"'),
            entry["dtype"].removeprefix("cached_torch_dtype_"),
            tuple(int(size) for size in re.findall(r"\d+", entry["shape"])),
            int(entry["data_size"]),
            entry["name"].strip('"') in read,
        )
        for _, entry in sorted(fields.items())
    ]


def _calls(lines: list[str], constants: dict[str, Constant]) -> list[KernelCall]:
    arrays, allocated, written, origins = _buffers(lines)
    shapes = {name: _without_batch(sizes) for name, sizes in {**arrays, **allocated, **written}.items()}
    weights = {name: constant.shape for name, constant in constants.items() if len(constant.shape) > 1}
    # weights that are not frozen are copied into a buffer first: one whose sizes are all numbers
    copied = {buffer: _numbers(sizes) for buffer, sizes in allocated.items() if re.fullmatch(r"[\dL, ]+", sizes)}
    found = []
    for line in lines:
        match = KERNEL.search(line) if "aoti_torch_" in line else None
        if match is None or not (INTEGER.search(match.group(1)) or FLOAT.search(match.group(1))):
            continue
        kernel, names = match.group(1), re.findall(r"\b[A-Za-z_]\w*\b", match.group(2))
        integer = bool(INTEGER.search(kernel))
        weight = next((n for n in names if n in weights), None) or next((n for n in names[1:] if n in copied), None)
        weight_shape = weights.get(weight or "") or copied.get(weight or "")
        output = next((n.removesuffix("_handle") for n in reversed(names) if n.endswith("_handle")), (names or [""])[0])
        after = names[names.index(weight) + 1 :] if weight else []
        # a residual sum is written into the buffer that is added, which has no shape of its own
        shape = shapes.get(output) or next((shapes[n] for n in after if n in shapes), None)
        told = WEIGHT_SCALE.search(origins.get(output, ""))
        scale = told.group(1) if told else after[0] if integer and after and after[0] in constants else None
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


def _buffers(lines: list[str]) -> tuple[dict[str, str], dict[str, str], dict[str, str], dict[str, str]]:
    """Arrays of sizes, sizes of buffers that are allocated, of those that kernels give, and what those came from."""
    arrays: dict[str, str] = {}
    allocated: dict[str, str] = {}
    written: dict[str, str] = {}
    origins: dict[str, str] = {}
    for line in lines:
        if "int_array_" in line and (match := ARRAY.search(line)):
            arrays[match.group(1)] = match.group(2)
        elif "aoti_torch_empty_strided" in line and (match := ALLOCATION.search(line)):
            allocated[match.group(2)] = arrays.get(match.group(1), "")
        elif "assert_size_stride" in line and (match := SIZES.search(line)):
            written.setdefault(match.group(1), match.group(2))
            origins.setdefault(match.group(1), match.group(3))
    return arrays, allocated, written, origins


def _module(source: str) -> str:
    """The module that a tensor belongs to: "layer1.0.conv1" of "layer1.0.conv1.weight_bias"; "" if it is not told."""
    module, _, tensor = source.rpartition(".")
    return module if tensor in ("weight", "bias", "weight_bias") else ""


def _without_batch(sizes: str) -> tuple[int, ...]:
    """A shape's numbers. The batch is a symbol; a linear layer over tokens has it times their number: 197L*s6."""
    first, _, others = sizes.partition(",")
    tokens = math.prod(_numbers(first))
    return (tokens, *_numbers(others)) if tokens != 1 else _numbers(others)


def _numbers(sizes: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\b(\d+)L?\b", sizes))


def _macs(kernel: str, weight: tuple[int, ...] | None, output: tuple[int, ...] | None) -> int | None:
    """Multiply-accumulates an image; of a linear kernel's weight, maybe packed transposed, the size counts."""
    if weight is None or output is None:
        return None
    if "conv" in kernel:
        return math.prod(output) * math.prod(weight[1:])
    if "bmm" in kernel:  # its weight is one matrix a batch, expanded or not
        return math.prod(output) * weight[-2]
    return math.prod(weight) * math.prod(output[:-1])
