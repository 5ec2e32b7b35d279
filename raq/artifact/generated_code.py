"""What an AOTInductor package says that it runs, read from the C++ that it carries, without executing any of it.

The package is a zip: native code, the C++ that it was compiled from, and metadata. The C++ names every constant
with its type and shape, and every call of a library kernel with its weight and output. The kernels that it calls must
be those that the native code imports. That finds mistakes and files that were mixed up, not a determined forger: that
the library was compiled from this C++ cannot be read. What really runs, executed.py tells.
"""

import json
import math
import re
import tempfile
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from raq.artifact.cpp import MAX_SOURCE_BYTES, CodeLine, Deadline, code_lines
from raq.artifact.elf import imported_symbols
from raq.errors import StageError

ZIP_MAGIC = b"PK\x03\x04"
METADATA_KEY = "raq"
KERNEL = re.compile(r"\baoti_torch_(?:cpu|cuda|mkldnn)_\w+\(")
OPAQUE = "aoti_torch_proxy_executor_call_function("
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
# what no honest package exceeds; a reader of strangers' files must end
LONGEST_SIDE = 4096  # pixels of an image that is still one
MAX_METADATA_BYTES, MAX_TIMES_FILE, MAX_ENTRIES = 1_000_000, 4, 10_000
MAX_SIZE, MAX_DIMENSIONS, MAX_CONSTANTS = 2**48, 16, 200_000
DAMAGE = (
    OSError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, RecursionError, ValueError,
    KeyError, IndexError, TypeError, AttributeError, OverflowError, MemoryError,
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


def is_package(path: Path) -> bool:
    """Whether a file begins as a package does, which is a zip."""
    try:
        with path.open("rb") as file:
            return file.read(len(ZIP_MAGIC)) == ZIP_MAGIC
    except OSError:
        return False


def read_package(path: Path) -> GeneratedCode:
    """Read a package; nothing of it is loaded as code. Bounded in memory, and in time (some 10 s at most).

    Raises StageError if the file is damaged, is no such package, or its C++ and its native code do not belong together.
    """
    deadline = Deadline()
    try:
        with zipfile.ZipFile(path) as package:
            entries = _entries(package, path)
            metadata = _metadata(package, entries)
            sources = {
                name.removesuffix(".cpp"): entry for name, entry in entries.items() if name.endswith(".wrapper.cpp")
            }
            binaries = {name.removesuffix(".so"): entry for name, entry in entries.items() if name.endswith(".so")}
            if not sources or set(sources) != set(binaries):
                raise ValueError("it does not hold one binary for each generated C++ file")
            constants: list[Constant] = []
            calls: list[KernelCall] = []
            for name, entry in sources.items():
                if entry.file_size > MAX_SOURCE_BYTES:
                    raise ValueError(f"{entry.file_size / 1e6:.0f} MB of C++")
                lines = list(code_lines(package.read(entry), deadline))
                own = _constants(lines)
                called = _calls(lines, {constant.name: constant for constant in own}, deadline)
                with tempfile.TemporaryFile() as library:
                    _unpack(package, binaries[name], library, deadline)
                    _match_binary(called, imported_symbols(library, deadline))
                constants += own
                calls += called
            _read_rest(package, entries, deadline)
    except DAMAGE as error:
        raise _unreadable(path, error) from None
    native = sum(entry.file_size for entry in binaries.values())
    return GeneratedCode(constants, calls, metadata, native, path.stat().st_size)


def read_metadata(path: Path) -> dict[str, Any]:
    """A package's metadata alone; StageError if it is no package."""
    try:
        with zipfile.ZipFile(path) as package:
            return _metadata(package, _entries(package, path))
    except DAMAGE as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: BaseException) -> StageError:
    text = type(error).__name__ if isinstance(error, (KeyError, IndexError, MemoryError)) else str(error)[:200]
    return StageError(f"{path}: not a readable package: {text}", "lower it again")


def _entries(package: zipfile.ZipFile, path: Path) -> dict[str, zipfile.ZipInfo]:
    """The package's files by name."""
    entries = package.infolist()
    if len(entries) > MAX_ENTRIES:
        raise ValueError(f"it holds {len(entries)} files")
    if sum(entry.file_size for entry in entries) > MAX_TIMES_FILE * path.stat().st_size + MAX_METADATA_BYTES:
        raise ValueError("it unpacks to many times its size")
    if len({entry.filename for entry in entries}) < len(entries):
        raise ValueError("it holds two files of one name")
    return {entry.filename: entry for entry in entries}


def _unpack(package: zipfile.ZipFile, entry: zipfile.ZipInfo, target: IO[bytes] | None, deadline: Deadline) -> None:
    """Read an entry to its end, which checks its checksum; into `target`, if given."""
    with package.open(entry) as source:
        while chunk := source.read(1 << 20):
            deadline.check()
            if target is not None:
                target.write(chunk)


def _read_rest(package: zipfile.ZipFile, entries: dict[str, zipfile.ZipInfo], deadline: Deadline) -> None:
    """Read what nothing is read out of, for its checksums: an artifact is whole or it is not."""
    for name, entry in entries.items():
        if not name.endswith((".wrapper.cpp", ".so")) and not _is_metadata(name):
            _unpack(package, entry, None, deadline)


def input_shape(metadata: dict[str, Any]) -> tuple[int, ...] | None:
    """[3, H, W] of a package's input, as raq wrote it there; None if it does not tell, or nothing that makes sense."""
    told = (metadata.get(METADATA_KEY) or {}).get("input")
    sizes = tuple(told) if isinstance(told, list) and all(type(size) is int for size in told) else ()
    return sizes if len(sizes) == 3 and all(0 < size <= LONGEST_SIDE for size in sizes) else None


def _is_metadata(name: str) -> bool:
    return name.endswith(".wrapper_metadata.json")


def _metadata(package: zipfile.ZipFile, entries: dict[str, zipfile.ZipInfo]) -> dict[str, Any]:
    def refuse(text: str) -> Any:
        raise ValueError(f"{text} in its metadata")

    found: dict[str, Any] = {}
    for name, entry in entries.items():
        if _is_metadata(name):
            if entry.file_size > MAX_METADATA_BYTES:
                raise ValueError("its metadata is too large")
            found = json.loads(package.read(entry), parse_constant=refuse)
    if not isinstance(found, dict):
        raise ValueError("its metadata is no mapping")
    if METADATA_KEY in found:
        found[METADATA_KEY] = json.loads(found[METADATA_KEY], parse_constant=refuse)
        if not isinstance(found[METADATA_KEY], dict):
            raise ValueError("its metadata is no mapping")
    return found


def _match_binary(calls: list[KernelCall], imported: set[str] | None) -> None:
    """ValueError unless the binary imports the kernels that the C++ calls, and no other of their kind.

    imported: None for a library that is no ELF file, whose imports are not known.
    """
    if imported is None:
        return
    known = {name for name in imported if KERNEL.match(f"{name}(") and (INTEGER.search(name) or FLOAT.search(name))}
    called = {call.kernel for call in calls if call.integer or FLOAT.search(call.kernel)}
    if called != known:
        raise ValueError(
            "its C++ is not what its native code was compiled from: "
            f"only the C++ calls {', '.join(sorted(called - known)) or 'nothing more'}, "
            f"only the native code {', '.join(sorted(known - called)) or 'nothing more'}"
        )


def _constants(lines: list[CodeLine]) -> list[Constant]:
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


def _calls(lines: list[CodeLine], constants: dict[str, Constant], deadline: Deadline) -> list[KernelCall]:
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
    """The module that a tensor belongs to: "layer1.0.conv1" of "layer1.0.conv1.weight_bias"; "" if it is not told."""
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
