"""`raq inspect`: what would become of a network, before any data or training; and the same look ahead of a run.

Weights are as the network's function leaves them, and ranges those of a few random samples: what would be int8 and what
not is known from the graph, accuracy is not.
"""

import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from raq.environment import available_cpus
from raq.errors import RaqError, UserError
from raq.experiment.inputs import IMAGES, INPUT, Inputs, InputSpec, image_input
from raq.experiment.ptq import Calibration
from raq.model.inputs import Example, example_of, random_inputs
from raq.model.zoo import build_network, check_output, load_state, load_weights

CALIBRATED = 4  # random samples
USUAL_EPS, USUAL_MOMENTUM = 1e-5, 0.1  # what batch norms have if nothing is said


@dataclass
class Inspection:
    """What is known of a network; None is what is not known.

    exports: for any batch size; static_batch: whether it exports for one batch size at least; reason: why not;
    parameters, macs: their number (of one sample); fp32_bytes, int8_bytes: of tensors, before and after quantization;
    int8_mac_share: of the graph; float_layers: each with why; others: what multiplies and is no layer; qat: whether the
    graph for it can be made, or why not; compiled: of the compiled int8 program, where that was asked for.
    """

    model: str
    inputs: list[dict[str, Any]]
    output_shape: list[int] | None = None
    parameters: int | None = None
    fp32_bytes: int | None = None
    int8_bytes: int | None = None
    batch_norms: int | None = None
    batch_norms_unusual: list[str] = field(default_factory=list)
    exports: bool | None = None
    static_batch: bool | None = None
    dynamic_batch: bool | None = None
    dynamic_axes: list[str] = field(default_factory=list)
    macs: int | None = None
    unknown_operators: list[str] = field(default_factory=list)
    quantizes: bool | None = None
    int8_mac_share: float | None = None
    int8_layers: int | None = None
    float_layers: list[dict[str, Any]] = field(default_factory=list)
    others: list[dict[str, Any]] = field(default_factory=list)
    qat: str | None = None
    compiled: dict[str, Any] | None = None
    reason: str | None = None
    hint: str | None = None

    def as_record(self) -> dict[str, Any]:
        """As plain values: what `raq inspect --json` prints."""
        return asdict(self)


def inspect_model(
    name: str,
    inputs: Inputs,
    classes: int | None,
    output: str | int | None = None,
    working_directory: str | None = None,
    backend: str = "x86",
    *,
    compiles: bool = False,
) -> Inspection:
    """Build a network, export it, and quantize it with random ranges; the first step that fails is the reason.

    compiles: compile the int8 program too, and run it on random samples, which may take minutes. Raises UserError if
    there is no such network.
    """
    found = Inspection(name, [one.plain() for one in inputs])
    network = build_network(name, classes, inputs, output, working_directory)
    example = example_of(inputs)
    _look_at(network, found)
    if not _tried(found, lambda: check_output(network, example, None, name)):
        return found
    with torch.no_grad():
        found.output_shape = list(network.eval()(*example.inputs).shape[1:])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if not _tried(found, lambda: _export(network, example, found)):
            found.exports = found.dynamic_batch = False
            return found
        try:
            program = _quantize(network, example, inputs, backend, found)
        except RaqError as error:
            found.quantizes, found.reason, found.hint = False, error.message, error.hint
            return found
        _prepare_qat(network, example, backend, found)
        if compiles:
            _tried(found, lambda: _compile(program, inputs, found))
    return found


def refuse_what_cannot_run(
    name: str,
    inputs: Inputs,
    classes: int | None,
    output: str | int | None,
    working_directory: str | None,
    *,
    is_classifier: bool,
    weights: Path | None = None,
) -> None:
    """UserError, ahead of a run, for a network that does not take these inputs, or cannot be exported.

    is_classifier: whether it must give logits [n, classes]; weights: a file of weights that must fit it.
    """
    from raq.quantize.export import graph_of

    network = build_network(name, classes, inputs, output, working_directory)
    example = example_of(inputs)
    check_output(network, example, classes if is_classifier else None, name)
    if weights is not None:
        load_state(network, load_weights(weights), name, str(weights))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph_of(network.eval(), example)


def _tried(found: Inspection, step: Callable[[], None]) -> bool:
    """Whether a step went well; what went wrong is added."""
    try:
        step()
    except RaqError as error:
        found.reason, found.hint = error.message, error.hint
        return False
    return True


def _look_at(network: nn.Module, found: Inspection) -> None:
    """Add what its modules show."""
    tensors = [*network.parameters(), *network.buffers()]
    found.parameters = sum(one.numel() for one in network.parameters())
    found.fp32_bytes = sum(one.numel() * one.element_size() for one in tensors)
    norms = {n: m for n, m in network.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    found.batch_norms = len(norms)
    for name, norm in norms.items():
        odd = [] if norm.track_running_stats else ["keeps no running statistics, which cannot be quantized"]
        odd += [] if norm.eps == USUAL_EPS else [f"eps {norm.eps:g}"]
        odd += [] if norm.momentum == USUAL_MOMENTUM else [f"momentum {norm.momentum}"]
        if odd:
            found.batch_norms_unusual.append(f"{name}: {', '.join(odd)}")


def _export(network: nn.Module, example: Example, found: Inspection) -> None:
    """Export it for any batch size, else for one; UserError if it cannot be."""
    from raq.quantize.arithmetic import network_macs
    from raq.quantize.export import export_network, export_program

    counted = network_macs(network, example)
    found.macs, found.unknown_operators = counted.total, counted.unknown
    try:
        export_network(network, example)
    except UserError:
        try:
            export_program(network, example, max_batch=1)
            found.static_batch = True
        except UserError:
            found.static_batch = False
        raise
    found.exports = found.dynamic_batch = found.static_batch = True
    found.dynamic_axes = sorted({axis.name for axes in example.axes for axis in axes})


def _quantize(network: nn.Module, example: Example, inputs: Inputs, backend: str, found: Inspection) -> ExportedProgram:
    """Quantize it with the ranges of random samples, and see what is int8; the program."""
    from raq.artifact.audit import audit_graph, graph_share
    from raq.quantize.arithmetic import NetworkMacs, operations
    from raq.quantize.convert import convert, tensor_bytes
    from raq.quantize.ptq import prepare

    prepared = prepare(network, example, backend, Calibration(observer="minmax"), reduce_range=False)
    with torch.no_grad():
        prepared(*random_inputs(inputs, CALIBRATED))
    program = convert(prepared, example)
    layers = audit_graph(program)
    found.quantizes, found.int8_bytes = True, tensor_bytes(program)
    found.int8_mac_share = graph_share(program, NetworkMacs(found.macs, found.unknown_operators))
    found.int8_layers = sum(layer.annotated for layer in layers)
    found.float_layers = [
        {"name": layer.name, "operator": layer.operator, "macs": layer.macs, "reason": layer.reason}
        for layer in layers
        if not layer.annotated
    ]
    found.others = [
        {"name": one.name, "operator": one.operator, "macs": one.macs} for one in operations(program) if not one.layer
    ]
    return program


def _compile(program: ExportedProgram, inputs: Inputs, found: Inspection) -> None:
    """Compile the int8 program, weights packed for single samples, and see what ran; UserError where none says it."""
    from raq.artifact.account import what_ran
    from raq.artifact.inductor import lower
    from raq.artifact.isolated import IsolatedProcess
    from raq.artifact.runtimes import read

    with tempfile.TemporaryDirectory() as folder:
        path, started = Path(folder) / "int8.pt2", time.perf_counter()
        threads = len(available_cpus())
        torch.set_num_threads(threads)  # layouts of weights go by how many there are
        lower(program, path, {"candidate": "int8", "kind": "ptq", "inputs": [one.plain() for one in inputs]})
        took_s = round(time.perf_counter() - started, 1)
        shapes = [constant.shape for constant in read(path).constants]
        with IsolatedProcess(path, threads=threads) as process:
            ran = what_ran(process, inputs, shapes, found.macs, [])
        if ran is None:
            raise UserError("which kernels ran is not known here", "oneDNN says it, on x86")
        found.compiled = {
            "compile_s": took_s,
            "size_bytes": path.stat().st_size,
            "executed_int8_mac_share": ran.executed_int8_mac_share,
            "reorders_per_call": ran.reorders_per_call,
        }


def _prepare_qat(network: nn.Module, example: Example, backend: str, found: Inspection) -> None:
    """Whether the graph for quantization-aware training can be made."""
    from raq.quantize.qat import prepare_qat

    try:
        prepare_qat(network, example, backend, reduce_range=False)
        found.qat = "ok"
    except RaqError as error:
        found.qat = error.message


def read_input(text: str) -> InputSpec:
    """An input from "3,224,224" (normalised images) or NAME=SHAPE[:DTYPE[:LARGEST]]; UserError for other text.

    LARGEST: of whole numbers, the largest that may be given, such as the last token.
    """
    name, _, described = text.rpartition("=")
    shape, _, rest = described.partition(":")
    dtype, _, largest = rest.partition(":")
    sizes = [part.strip() for part in shape.split(",")]
    whole = all(size.isascii() and size.isdigit() and len(size) < 8 for size in sizes)
    if not whole or (largest and not largest.isdigit()):
        raise UserError(
            f"--input {text!r}: not the description of an input",
            "write --input 3,224,224 for images, or --input NAME=SHAPE:DTYPE:LARGEST, e.g. tokens=128:int64:30000",
        )
    kind = dtype or "float32"
    if name or not kind.startswith(("float", "bfloat")):
        high = float(largest or 1)
        spec = InputSpec(name or INPUT, tuple(map(int, sizes)), kind, 0.0, high, by_name=bool(name))
    else:
        spec = InputSpec(IMAGES if len(sizes) == 3 else INPUT, tuple(map(int, sizes)), kind)
    problem = spec.problem()
    if problem:
        raise UserError(f"--input {text!r}: {problem}", "see raq inspect --help")
    return spec


def default_inputs(texts: Sequence[str]) -> Inputs:
    """The inputs of these descriptions, those without names numbered; none: images of 224 pixels.

    UserError for two of one name, and where some have names and others have not.
    """
    found = tuple(map(read_input, texts)) if texts else (image_input((3, 224, 224)),)
    if len({one.by_name for one in found}) > 1:
        raise UserError("--input: some inputs have names, and others have not", "name all of them, or none")
    if len(found) > 1 and not found[0].by_name:
        return tuple(replace(one, name=f"{INPUT}{number}") for number, one in enumerate(found))
    if len({one.name for one in found}) < len(found):
        raise UserError("--input: two inputs have the same name", "name each otherwise")
    return found
