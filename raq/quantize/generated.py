"""What an AOTInductor package really runs, read from the C++ that it carries, without loading or executing any of it.

The package is a zip: native code, the C++ that it was compiled from, and metadata. The C++ names every constant
with its type and shape, and every call of a library kernel with its weight and output. The names of the kernels must
also stand in the native code's import table: C++ that does not belong to its binary is found out.
"""

import json
import math
import re
import zipfile
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
ITEM_BYTES = {"float64": 8, "int64": 8, "float32": 4, "int32": 4, "float16": 2, "bfloat16": 2, "int16": 2}


@dataclass(frozen=True)
class Constant:
    """A tensor in the package. stored_bytes: as packed for the kernel, with padding; bytes: its numbers alone."""

    name: str
    source: str
    dtype: str
    shape: tuple[int, ...]
    stored_bytes: int

    @property
    def bytes(self) -> int:
        """Elements times the size of one."""
        return math.prod(self.shape) * ITEM_BYTES.get(self.dtype, 1)


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
    again = "lower it again"
    try:
        with zipfile.ZipFile(path) as package:
            damaged = package.testzip()
            if damaged is not None:
                raise StageError(f"{path}: damaged: {damaged} does not have its checksum", again)
            files = {name: package.read(name) for name in package.namelist() if "/aotinductor/" in name}
    except (OSError, zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise StageError(f"{path}: not a readable package: {error}", again) from None
    sources = [text.decode(errors="replace") for name, text in files.items() if name.endswith(".wrapper.cpp")]
    binaries = [content for name, content in files.items() if name.endswith(".so")]
    if not sources or not binaries:
        raise StageError(
            f"{path}: the package holds no generated C++, or no native code", f"it cannot be checked; {again}"
        )
    metadata = _metadata(path, files)
    constants = [constant for source in sources for constant in _constants(source)]
    calls = [call for source in sources for call in _calls(source, {c.name: c for c in constants})]
    for call in calls:
        if not any(b"\0" + call.kernel.encode() + b"\0" in binary for binary in binaries):
            raise StageError(
                f"{path}: its C++ calls {call.kernel}, and its native code does not",
                f"the C++ inside is not what was compiled: do not trust this file; {again}",
            )
    return GeneratedCode(constants, calls, metadata, sum(map(len, binaries)), path.stat().st_size)


def read_metadata(path: Path) -> dict[str, Any]:
    """A package's metadata alone; StageError if it is no package."""
    try:
        with zipfile.ZipFile(path) as package:
            files = {n: package.read(n) for n in package.namelist() if n.endswith("wrapper_metadata.json")}
    except (OSError, zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise StageError(f"{path}: not a readable package: {error}", "lower it again") from None
    return _metadata(path, files)


def _metadata(path: Path, files: dict[str, bytes]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    try:
        for name, text in files.items():
            if name.endswith("wrapper_metadata.json"):
                found = json.loads(text)
        if METADATA_KEY in found:
            found[METADATA_KEY] = json.loads(found[METADATA_KEY])
    except (ValueError, TypeError) as error:
        raise StageError(f"{path}: its metadata is damaged: {error}", "lower it again") from None
    return found


def _constants(source: str) -> list[Constant]:
    fields: dict[int, dict[str, str]] = {}
    for number, key, value in CONSTANT.findall(source):
        fields.setdefault(int(number), {})[key] = value
    return [
        Constant(
            entry["name"].strip('"'),
            entry["original_fqn"].strip('"'),
            entry["dtype"].removeprefix("cached_torch_dtype_"),
            tuple(int(size) for size in re.findall(r"\d+", entry["shape"])),
            int(entry["data_size"]),
        )
        for _, entry in sorted(fields.items())
    ]


def _calls(source: str, constants: dict[str, Constant]) -> list[KernelCall]:
    written = {buffer: sizes for buffer, sizes, _ in SIZES.findall(source)}
    arrays = dict(ARRAY.findall(source))
    allocated = {buffer: arrays.get(array, "") for array, buffer in ALLOCATION.findall(source)}
    shapes = {buffer: _without_batch(sizes) for buffer, sizes in {**allocated, **written}.items()}
    origins = {buffer: origin for buffer, _, origin in SIZES.findall(source)}
    # weights that are not frozen are copied into a buffer first: one whose sizes are all numbers
    weights = {name: constant.shape for name, constant in constants.items()}
    weights |= {buffer: _numbers(sizes) for buffer, sizes in allocated.items() if re.fullmatch(r"[\dL, ]+", sizes)}
    found = []
    for kernel, arguments in KERNEL.findall(source):
        integer = bool(INTEGER.search(kernel))
        if not integer and not FLOAT.search(kernel):
            continue
        names = re.findall(r"\b[A-Za-z_]\w*\b", arguments)
        weight = next((n for n in names if len(weights.get(n, ())) > 1), None)
        output = next((n.removesuffix("_handle") for n in reversed(names) if n.endswith("_handle")), names[0])
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
                weights[weight] if weight else None,
                shape,
                _macs(kernel, weights[weight] if weight else None, shape),
            )
        )
    return found


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
    return math.prod(weight) * math.prod(output[:-1])
