"""What really ran: the kernels that oneDNN reports as executed while an artifact computes, in a process of its own.

In its verbose mode oneDNN writes a line for each primitive that it executes: data types, shapes, implementation
(oneDNN's documentation, "Verbose mode"; format v1). That proves kernels of int8 better than any reading of code can: an
unfrozen program, say, calls float ones. It covers oneDNN alone, so what ran elsewhere counts as float. It also reports
weights that are repacked at every call, which wastes time. Must not import torch.
"""

import math
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

TRACED_BATCHES = (1, 8)  # weights have the same shape in both, activations do not
MAX_BATCH = 1_000_000  # a line with a larger one is damaged
TRACED_CALLS = 3  # the last one counts: the first ones pack weights and build kernels once
INTEGERS = ("u8", "s8")
HALVES = ("bf16", "f16")
MULTIPLYING = ("convolution", "deconvolution", "inner_product", "matmul", "rnn")
SIZES = re.compile(r"(mb|ic|oc|od|oh|ow|kd|kh|kw|id|ih|iw|g)(\d+)")


@dataclass(frozen=True)
class Execution:
    """One primitive that ran. macs: multiply-accumulates of the whole batch, None if its shapes do not determine them.

    source, weights: data types, of a reorder those of its source and its target; shape: of what a reorder reorders; ms:
    how long it took, None where the line does not say.
    """

    primitive: str
    implementation: str
    source: str
    weights: str
    macs: int | None
    shape: tuple[int, ...] = ()
    ms: float | None = None

    @property
    def integer(self) -> bool:
        """Whether it multiplied integers."""
        return self.source in INTEGERS and self.weights in INTEGERS

    @property
    def half(self) -> bool:
        """Whether it multiplied floats of 16 bits."""
        return self.source in HALVES and self.weights in HALVES


@dataclass(frozen=True)
class Traced:
    """One traced call. executions: primitives that multiply; macs, int8_macs, half_macs (in floats of 16 bits): theirs,
    for an image; repacked: weights.

    macs is None if the shapes of any are not known.
    """

    batch_size: int
    executions: list[Execution]
    int8_macs: float
    half_macs: float
    macs: float | None
    repacked: int


@dataclass(frozen=True)
class KnownLayer:
    """A layer of the network. macs: for one image; int8: whether its code is to be of integers, None if unknown."""

    name: str
    macs: int
    int8: bool | None = None


@dataclass(frozen=True)
class ExecutedLayer:
    """A layer and the kernel that ran for it; None if none of oneDNN's did."""

    name: str
    macs: int
    kernel: str | None
    int8: bool


@dataclass(frozen=True)
class Executed:
    """What ran, as a record has it.

    executed_int8_mac_share: multiply-accumulates in oneDNN's int8 kernels, over those of the network or of the trace,
    whichever is more. The least of the batch sizes; 0 if oneDNN reported nothing; None if either total is unknown.
    executed_half_mac_share: the same of kernels in floats of 16 bits.
    reorders_per_call: by batch size, how many weights were repacked.
    """

    executed_int8_mac_share: float | None
    reorders_per_call: dict[str, int] = field(default_factory=dict)
    executed_layers: list[ExecutedLayer] = field(default_factory=list)
    executed_half_mac_share: float | None = None

    def as_record(self) -> dict[str, Any]:
        """As plain values, for a record."""
        return asdict(self)


def read_trace(text: str, mark: str, weight_sizes: Collection[int]) -> list[Traced] | None:
    """The last call of each batch size, from a log in oneDNN's verbose mode; None if the log has no mark of a call.

    mark: prefix of the line that begins a call, before the batch size; random, so that an artifact cannot forge it.
    weight_sizes: element counts of the artifact's weights: a reorder of that many elements may be of one of them.
    """
    calls = read_calls(text, mark)
    if not calls:
        return None
    last = {batch_size: executions for batch_size, executions in calls}
    reordered = {
        batch_size: {e.shape for e in executions if e.primitive == "reorder" and math.prod(e.shape) in weight_sizes}
        for batch_size, executions in last.items()
    }
    # a weight has the same shape whatever the batch, and no activation has
    always = set.intersection(*reordered.values()) if len(last) > 1 else set()
    weights = {
        batch_size: {shape for shape in shapes if shape in always or not _may_be_images(shape, batch_size)}
        for batch_size, shapes in reordered.items()
    }
    return [_traced(batch_size, executions, weights[batch_size]) for batch_size, executions in last.items()]


def _may_be_images(shape: tuple[int, ...], batch_size: int) -> bool:
    """Whether it may be the shape of activations: of convolutions' the first side is the batch, of others' any."""
    return len(shape) < 4 or shape[0] == batch_size


def read_calls(text: str, mark: str) -> list[tuple[int, list[Execution]]]:
    """Every call in a log in oneDNN's verbose mode, in order: its batch size, and what it executed (`read_trace`)."""
    calls: list[tuple[int, list[Execution]]] = []
    for line in text.splitlines():
        size = line.removeprefix(mark)
        if line.startswith(mark) and size.isdigit() and len(size) < 8 and 0 < int(size) <= MAX_BATCH:
            calls.append((int(size), []))
        elif calls and (execution := read_execution(line)) is not None:
            calls[-1][1].append(execution)
    return calls


def read_execution(line: str) -> Execution | None:
    """The primitive that a line of the trace says was executed; None for any other line."""
    fields = line.split(",")
    if fields[:1] != ["onednn_verbose"] or "exec" not in fields[:5] or len(fields) < 10:
        return None
    at = fields.index("exec")
    primitive, implementation, tensors, problem = fields[at + 2], fields[at + 3], fields[at + 5], fields[-2]
    types = {part.partition(":")[0]: part.split(":")[1] for part in tensors.split() if part.count(":") > 0}
    source, weights = types.get("src", types.get("src_layer", "")), types.get("wei", types.get("wei_layer", ""))
    try:
        ms = float(fields[-1])
    except ValueError:
        ms = None
    if primitive == "reorder":
        return Execution(primitive, implementation, source, types.get("dst", ""), None, _dimensions(problem), ms)
    macs = _macs(primitive, problem) if primitive in MULTIPLYING else 0
    return Execution(primitive, implementation, source, weights, macs, ms=ms)


def _dimensions(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("x")) if re.fullmatch(r"\d+(x\d+)*", text) else ()


def _macs(primitive: str, problem: str) -> int | None:
    """Multiply-accumulates of a problem: "mb1_ic3oc16_ih32oh32kh3..." or, of a matrix product, "1x64:64x10"."""
    if primitive == "matmul":
        first, _, second = problem.partition(":")
        left, right = _dimensions(first), _dimensions(second.partition(":")[0])
        if len(left) < 2 or len(right) < 2:
            return None
        return (
            math.prod(max(a, b) for a, b in zip(left[:-2], right[:-2], strict=False)) * left[-2] * left[-1] * right[-1]
        )
    size = {name: int(number) for name, number in SIZES.findall(problem)}
    if primitive == "rnn" or not {"mb", "ic", "oc"} <= set(size):
        return None
    if primitive == "inner_product":
        spatial = math.prod(size.get(name, 1) for name in ("id", "ih", "iw"))
        return size["mb"] * size["oc"] * size["ic"] * spatial
    kernel = math.prod(size.get(name, 1) for name in ("kd", "kh", "kw"))
    places = ("id", "ih", "iw") if primitive == "deconvolution" else ("od", "oh", "ow")
    pixels = math.prod(size.get(name, 1) for name in places)
    return size["mb"] * size["oc"] * pixels * (size["ic"] // size.get("g", 1)) * kernel


def _traced(batch_size: int, executions: list[Execution], weights: Collection[tuple[int, ...]]) -> Traced:
    """One call's summary: multiply-accumulates per image, and reorders of weights. weights: their shapes."""
    known = [execution for execution in executions if execution.primitive in MULTIPLYING]
    integer = sum(execution.macs or 0 for execution in known if execution.integer)
    half = sum(execution.macs or 0 for execution in known if execution.half)
    repacked = sum(execution.primitive == "reorder" and execution.shape in weights for execution in executions)
    unknown = any(execution.macs is None for execution in known)
    total = None if unknown else sum(e.macs or 0 for e in known) / batch_size
    return Traced(batch_size, known, integer / batch_size, half / batch_size, total, repacked)


def summary(traces: Sequence[Traced] | None, total_macs: float | None, layers: Iterable[KnownLayer] = ()) -> Executed:
    """What the traces show. total_macs: of the network, for an image; layers: in the order of execution."""
    if not traces:
        return Executed(0.0, executed_half_mac_share=0.0)
    int8 = half = None
    if total_macs and all(traced.macs is not None for traced in traces):
        int8 = min(traced.int8_macs / max(total_macs, traced.macs or 0) for traced in traces)
        half = min(traced.half_macs / max(total_macs, traced.macs or 0) for traced in traces)
    repacked = {str(traced.batch_size): traced.repacked for traced in traces}
    return Executed(int8, repacked, _layers(traces[0], layers), half)


def _layers(traced: Traced, layers: Iterable[KnownLayer]) -> list[ExecutedLayer]:
    """Each layer with its kernel: the first unused one with the same number of multiply-accumulates.

    Which of several equal ones ran for which of several equal layers is not known, nor does it matter.
    """
    left = list(traced.executions)
    found = []
    for layer in layers:
        ran = next((e for e in left if e.macs == layer.macs * traced.batch_size), None)
        if ran is not None:
            left.remove(ran)
        kernel = None if ran is None else f"{ran.primitive} {ran.implementation} {ran.source} x {ran.weights}"
        int8 = ran is not None and ran.integer
        found.append(ExecutedLayer(layer.name, layer.macs, kernel, int8))
    return found
