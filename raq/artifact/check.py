"""`raq check`: is an artifact quantized, is it whole, is it the one that was evaluated? Ours or a stranger's.

An AOTInductor package is native code, which runs when it is loaded; a .pte or .onnx is instructions for a runtime that
was not written to withstand a malicious one. So it is read, not loaded, unless the user asks for that, or a record in
the user's own results folder vouches for its digest; then it runs in a process of its own, where kernels are reported.
"""

import math
import platform
import shutil
import tempfile
from pathlib import Path
from typing import Any

from raq.artifact.checked import Checked, CheckedLayer
from raq.artifact.generated_code import GeneratedCode
from raq.artifact.judgement import (
    AuditedLayer,
    Evidence,
    Lowered,
    OtherOperation,
    evidence_of,
    why_not_int8,
    why_not_int8_weights,
)
from raq.artifact.metadata import Metadata
from raq.artifact.runtimes import RUNTIMES, read, runtime_of_file
from raq.artifact.sizes import FLOATS, ledger
from raq.artifact.trial import try_batches
from raq.artifact.wrapper_code import FLOAT, WEIGHT_ONLY_KERNEL
from raq.environment import gpus, machine, torch_version
from raq.errors import StageError, UserError
from raq.experiment.measurement import Require
from raq.store.files import file_digest
from raq.store.local import Store
from raq.store.views import View, view, view_file

# what the compiler calls the instruction sets, and what /proc/cpuinfo does
ISA_FEATURES = {"AVX2": "avx2", "AVX512": "avx512f", "AVX512_VNNI": "avx512_vnni", "AMX_TILE": "amx_int8",
                "NEON": "asimd"}  # fmt: skip
FLOAT_PRODUCTS = ("MatMul float", "Gemm float")  # as an .onnx asks for them
MAX_BYTES = 8_000_000_000
MIN_HALF_SHARE = Require().half_mac_share


class _AuditedLayer(AuditedLayer):
    operator: str = ""
    annotated: bool | None = None
    kernel: str | None = None


class _Audit(View):
    layers: list[_AuditedLayer]
    others: tuple[OtherOperation, ...] = ()


class _Shown(View):
    audit: _Audit


class _Vouched(Lowered):
    """The results of the lower stage that made a file; all is None of a damaged record: it vouches for nothing."""

    sha256: str | None = None


class _Named(View):
    kind: str
    fingerprint: str


def check(path: Path, results: Path, *, run: bool, require: float, max_float_weights: float = 0.5) -> dict[str, Any]:
    """What can be said of an artifact, as plain values (`Checked`); `problems` is empty if nothing is wrong with it.

    results: the folder whose records vouch for artifacts that lie in it; run: load it even if none does; require: the
    least share of MACs in int8 of one that is to be int8 (all but those that raq marked fp32); max_float_weights: the
    largest share of its weights that may be floats. Raises UserError if there is no such file.
    """
    if not path.is_file():
        raise UserError(f"{path}: there is no such file", "give the path of an artifact (.pt2, .pte, .onnx or .trt)")
    problem = _not_an_artifact(path)
    if problem:
        return Checked(str(path), None, path.stat().st_size, problems=[f"{path}: {problem}"]).as_record()
    with tempfile.TemporaryDirectory() as folder:
        own = Path(folder) / "artifact"  # what is digested is what is read and run
        shutil.copyfile(path, own)
        found = Checked(str(path), file_digest(own), own.stat().st_size)
        _check(path, own, _record(path, Store(results.resolve())), found, run=run)
        native = runtime_of_file(own).is_native
    _judge(found, require, max_float_weights, native=native)
    return found.as_record()


def _not_an_artifact(path: Path) -> str | None:
    """What a look at a file's beginning and size says against it, before anything is done with all of it."""
    try:
        runtime_of_file(path)
    except StageError as error:
        return error.message.removeprefix(f"{path}: ")
    size = path.stat().st_size
    return f"not a readable package: {size / 1e9:.1f} GB is more than any artifact has" if size > MAX_BYTES else None


def _check(path: Path, own: Path, record: dict[str, Any] | None, found: Checked, *, run: bool) -> None:
    """Add what is read from the file, its copy `own`, and, if it may run here, what running it shows."""
    made = _Vouched()
    if record is not None:
        recorded = view(_Vouched, record, str(path.parent / "record.json"))
        found.vouched = recorded.sha256 == found.sha256
        if found.vouched:
            made = recorded
        else:
            found.problems.append("it is not the file that was evaluated: its digest is not the one in its record")
    try:
        code = read(own)
    except StageError as error:
        found.problems.append(error.message.replace(str(own), str(path)))
        return
    found.metadata = Metadata(code.metadata)
    found.ledger = ledger(code)
    found.total_macs = made.macs if made.macs is not None else found.metadata.macs
    known = made.float_weight_share
    found.float_weight_share = known if known is not None else float_weights_of_code(code)
    if made.audit is None or record is None:
        found.layers = layers_of_code(code)
        found.int8_mac_share = None if _only_shows_when_run(found.metadata) else share_of_code(code, found.metadata)
    else:
        audit = view(_Shown, record, str(path.parent / "record.json")).audit
        found.layers = [CheckedLayer(**layer.model_dump()) for layer in audit.layers]
        found.others, found.int8_mac_share = list(audit.others), made.audit.int8_mac_share
        found.by_choice_share = evidence_of(made).by_choice
    if _judge_machine(found, found.metadata, native=runtime_of_file(own).is_native) and (run or found.vouched):
        try_batches(own, path, found, found.metadata, found.ledger)


def share_of_code(code: GeneratedCode, metadata: Metadata) -> float | None:
    """The share of MACs that integer kernels do, by the code alone.

    Of all kernel calls, or of all that the network does, as the metadata has it, if that is more. None if a call
    is of unknown size: then it may be of anything, unless it is an ordinary matrix product of which the total is known.
    """
    stated = metadata.macs
    unknown = [call.kernel for call in code.calls if call.macs is None]
    if any(stated is None or not (FLOAT.search(kernel) or kernel in FLOAT_PRODUCTS) for kernel in unknown):
        return None
    total = max(stated or 0, sum(call.macs or 0 for call in code.calls))
    integer = sum(call.macs or 0 for call in code.calls if call.integer)
    return min(1.0, integer / total) if total else None


def float_weights_of_code(code: GeneratedCode) -> float | None:
    """Of the numbers in the package's matrices and kernels, the share that are floats; None if it has none."""
    sizes = {False: 0, True: 0}
    for constant in code.constants:
        if len(constant.shape) > 1:
            sizes[constant.dtype in FLOATS] += math.prod(constant.shape)
    total = sum(sizes.values())
    return sizes[True] / total if total else None


def layers_of_code(code: GeneratedCode) -> list[CheckedLayer]:
    """Kernel calls as layers, by the name of their weight: all that a package shows without its program."""
    return [
        CheckedLayer(
            name=call.layer or call.weight or f"call {number}",
            operator="conv" if "conv" in call.kernel.lower() else "linear",
            macs=call.macs,
            annotated=None,
            int8=call.integer,
            kernel=call.kernel,
            reason="" if call.integer else "the code calls a float kernel",
        )
        for number, call in enumerate(code.calls)
    ]


def _record(path: Path, store: Store) -> dict[str, Any] | None:
    """The results of the stage that made the file, if it lies in this store; none of them from a damaged record."""
    folder = path.resolve().parent
    if folder.parent != store.root / "stages":
        return None
    try:
        named = view_file(_Named, folder / "record.json")
        known = store.results(named.kind, named.fingerprint)
    except UserError:
        return {}  # damaged: it vouches for nothing
    return {} if known is None or named.kind != "lower" else known


def _judge(found: Checked, require: float, max_float_weights: float, *, native: bool) -> None:
    """Add what is wrong with it, by the same judgement as the gate of a run."""
    if found.ledger is None or found.metadata is None:
        return
    runtime = RUNTIMES.get(found.metadata.runtime or "")
    if found.metadata.is_fp32:
        found.notes.append("marked as fp32: nothing is to be int8")
    elif found.metadata.is_half:
        found.notes.append("marked as half precision: nothing is to be int8")
        half = found.executed.executed_half_mac_share
        says = found.metadata.device == "cpu" and (runtime is None or runtime.reports == "onednn")
        if says and found.ran and not found.vouched and (half is None or half < MIN_HALF_SHARE):  # else its run has
            known = "an unknown share" if half is None else f"{half:.3f}"
            found.problems.insert(0, f"not in half precision: {known} of its MACs ran in kernels of 16 bits")
    elif found.metadata.is_weight_only:
        found.notes.append("marked as weight-only: its arithmetic is in floats")
        _judge_weights(found, require, max_float_weights)
    elif _only_shows_when_run(found.metadata):
        _judge_on_gpu(found, require, max_float_weights)
    else:
        _judge_int8(found, require, max_float_weights, found.metadata.candidate)
    if not found.vouched and found.metadata.float_by_choice:
        found.notes.append(
            "it says that layers are in float by choice: no record vouches for it; --min-int8-share sets the limit"
        )
    if not found.vouched and not found.ran:
        unknown = "whether its native code comes from the C++ inside is not known"
        if not native:
            unknown = "what its runtime makes of it is not known"
        found.notes.append(f"read, not run: {unknown}; --run shows what runs")
    repacked = {size: count for size, count in found.executed.reorders_per_call.items() if count}
    if repacked:
        counts = ", ".join(f"{count} at batch {size}" for size, count in repacked.items())
        found.notes.append(f"weights are packed anew at every call, which is time lost: {counts}")
    if found.ledger.duplicates:
        found.problems.append(f"float copies of int8 weights are kept: {', '.join(found.ledger.duplicates[:5])}")


def _only_shows_when_run(metadata: Metadata) -> bool:
    """Whether neither code nor runtime say what is int8: of packages for GPUs."""
    runtime = RUNTIMES.get(metadata.runtime or "")
    return metadata.device != "cpu" and (runtime is None or runtime.reports != "itself")


def _judge_on_gpu(found: Checked, require: float, max_float_weights: float) -> None:
    """Add that a package for GPUs is not int8, or not shown to be: by the kernels that a profiler saw."""
    seen = found.int8_launches
    if found.executed.executed_int8_mac_share is not None:
        found.int8_mac_share = found.executed.executed_int8_mac_share
        candidate = None if found.metadata is None else found.metadata.candidate
        _judge_int8(found, require, max_float_weights, candidate)
    elif seen == 0:
        found.problems.insert(0, "not quantized: offered as int8, and no int8 kernel of raq's was seen running")
    elif seen is None:
        found.notes.append("made for a GPU: only running it there shows what is int8")
    else:
        found.notes.append(f"{seen} launches of raq's int8 kernels were seen: of which layers only its record tells")


def _judge_weights(found: Checked, require: float, max_float_weights: float) -> None:
    """Add that it does not read int8 weights, if so: by the kernels that its code calls; nothing reports those running.

    Of the layers alone: what multiplies activations has no weights.
    """
    total = sum(layer.macs or 0 for layer in found.layers)
    reads = sum(layer.macs or 0 for layer in found.layers if WEIGHT_ONLY_KERNEL in (layer.kernel or ""))
    share = reads / total if total else None
    missing = why_not_int8_weights(share, require, found.float_weight_share, max_float_weights)
    if missing:
        found.problems.insert(0, f"not quantized: offered as weight-only, and {' and '.join(missing)}")


def _judge_int8(found: Checked, require: float, max_float_weights: float, candidate: str | None) -> None:
    """Add that it is not int8, if so."""
    executed = found.executed.executed_int8_mac_share
    evidence = Evidence(found.int8_mac_share, executed, found.by_choice_share, found.float_weight_share)
    missing = why_not_int8(evidence, require, max_float_weights)
    if missing:
        said = "" if candidate is None else f"offered as {candidate}, and "
        floats = len(found.others) + sum(not layer.int8 for layer in found.layers)
        found.problems.insert(
            0, f"not quantized: {said}{' and '.join(missing)}; {floats} of "
            f"{len(found.layers) + len(found.others)} operations are float"
        )  # fmt: skip


def _judge_machine(found: Checked, metadata: Metadata, *, native: bool) -> bool:
    """Whether it can be run here; if not, why is added. native: it is native code; a .pte is data for its runtime."""
    problems: list[str] = []
    here = torch_version()
    if native and metadata.torch not in (None, here):
        problems.append(f"made by torch {metadata.torch}, here is torch {here}: lower it again")
    if metadata.architecture not in (None, platform.machine()):
        problems.append(f"made for {metadata.architecture}, and this machine is {platform.machine()}")
    features = machine().features
    needed = metadata.instruction_sets
    lacking = [isa for isa in needed if isa in ISA_FEATURES and ISA_FEATURES[isa] not in features]
    if lacking:
        problems.append(f"made for a CPU with {', '.join(lacking)}, which this one has not: it would crash here")
    unknown = [isa for isa in needed if isa not in ISA_FEATURES]
    if unknown:
        found.notes.append(f"made for a CPU with {', '.join(unknown)}, which is not known here")
    found.problems += problems
    if metadata.device != "cpu" and not gpus():
        found.notes.append("not run: there is no GPU here")
        return False
    return not problems
