"""`raq check`: is an artifact quantized, is it whole, is it the one that was evaluated? Ours or a stranger's.

An AOTInductor package is native code, which runs when it is loaded; a .pte is instructions for a runtime that was not
written to withstand a malicious one. So it is read, not loaded, unless the user asks
for that, or a record in the user's own results folder vouches for its digest; and then it runs in a process of its own,
where oneDNN reports the kernels that it executes.
"""

import math
import platform
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raq.artifact.generated_code import METADATA_KEY, GeneratedCode, input_shape
from raq.artifact.judgement import Evidence, evidence_of, why_not_int8
from raq.artifact.runtimes import in_parts, read, runtime_of_file
from raq.artifact.sizes import FLOATS, ledger
from raq.artifact.wrapper_code import FLOAT
from raq.environment import gpus, machine, versions
from raq.errors import StageError, UserError
from raq.model.parity import sqnr_db
from raq.store.files import file_digest, read_json
from raq.store.local import Store

if TYPE_CHECKING:
    from raq.artifact.isolated import IsolatedProcess

# what the compiler calls the instruction sets, and what /proc/cpuinfo does
ISA_FEATURES = {"AVX2": "avx2", "AVX512": "avx512f", "AVX512_VNNI": "avx512_vnni", "AMX_TILE": "amx_int8",
                "NEON": "asimd"}  # fmt: skip
MIN_DB_BETWEEN_BATCHES = 20.0
MAX_BYTES = 8_000_000_000
MAX_MACS = 10**18
Found = dict[str, Any]


def check(path: Path, results: Path, *, run: bool, require: float, max_float_weights: float = 0.5) -> Found:
    """What can be said of an artifact, as plain values; `problems` is empty if nothing is wrong with it.

    results: the folder whose records vouch for artifacts that lie in it; run: load it even if none does; require: the
    least share of MACs in int8 of one that is to be int8 (all but those that raq marked fp32); max_float_weights: the
    largest share of its weights that may be floats. Raises UserError if there is no such file.
    """
    if not path.is_file():
        raise UserError(f"{path}: there is no such file", "give the path of an artifact (.pt2 or .pte)")
    problem = _not_an_artifact(path)
    if problem:
        found = _nothing_found(path, None, path.stat().st_size)
        found["problems"].append(f"{path}: {problem}")
        return found
    with tempfile.TemporaryDirectory() as folder:
        own = Path(folder) / "artifact"  # what is digested is what is read and run
        shutil.copyfile(path, own)
        found = _check(path, own, _record(path, Store(results.resolve())), run=run)
    _judge(found, require, max_float_weights)
    return found


def _not_an_artifact(path: Path) -> str | None:
    """What a look at a file's beginning and size says against it, before anything is done with all of it."""
    try:
        runtime_of_file(path)
    except StageError as error:
        return error.message.removeprefix(f"{path}: ")
    size = path.stat().st_size
    return f"not a readable package: {size / 1e9:.1f} GB is more than any artifact has" if size > MAX_BYTES else None


def _nothing_found(path: Path, digest: str | None, size: int) -> Found:
    return {"path": str(path), "sha256": digest, "size_bytes": size, "vouched": None, "metadata": None,
            "int8_mac_share": None, "executed_int8_mac_share": None, "float_weight_share": None,
            "reorders_per_call": {}, "layers": [], "others": [], "executed_layers": [], "ledger": None,
            "ran": None, "problems": [], "notes": []}  # fmt: skip


def _check(path: Path, own: Path, record: Found | None, *, run: bool) -> Found:
    digest = file_digest(own)
    found = _nothing_found(path, digest, own.stat().st_size)
    if record is not None:
        found["vouched"] = record.get("sha256") == digest
        if not found["vouched"]:
            found["problems"].append("it is not the file that was evaluated: its digest is not the one in its record")
    try:
        code = read(own)
    except StageError as error:
        found["problems"].append(error.message.replace(str(own), str(path)))
        return found
    ours: Found = code.metadata.get(METADATA_KEY) or {}
    made = record if record is not None and found["vouched"] else {}
    audit = made.get("audit")
    found |= {"metadata": code.metadata, "layers": audit["layers"] if audit else _layers(code),
              "others": audit.get("others", []) if audit else [],
              "int8_mac_share": audit["int8_mac_share"] if audit else share_of_code(code, ours),
              "by_choice_share": evidence_of(made).by_choice if audit else 0.0,
              "total_macs": made.get("macs", _count(ours.get("macs"))), "ledger": ledger(code).as_record(),
              "float_weight_share": made.get("float_weight_share", float_weights_of_code(code))}  # fmt: skip
    runs_here = _judge_machine(found, ours)
    if (run or found["vouched"]) and runs_here:
        _run(own, path, found)
    return found


def share_of_code(code: GeneratedCode, ours: Found) -> float | None:
    """The share of MACs that integer kernels do, by the code alone.

    Of all kernel calls, or of all that the network does, as the metadata `ours` has it, if that is more. None if a call
    is of unknown size: then it may be of anything, unless it is an ordinary matrix product of which the total tells.
    """
    told = _count(ours.get("macs"))
    unknown = [call.kernel for call in code.calls if call.macs is None]
    if any(told is None or not FLOAT.search(kernel) for kernel in unknown):
        return None
    total = max(told or 0, sum(call.macs or 0 for call in code.calls))
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


def _count(told: Any) -> int | None:
    """A number of multiply-accumulates that a file tells; None if it tells none that makes sense."""
    return told if type(told) is int and 0 < told < MAX_MACS else None


def _layers(code: GeneratedCode) -> list[Found]:
    """Kernel calls as layers, by the name of their weight: all that a package tells without its program."""
    return [
        {
            "name": call.layer or call.weight or f"call {number}",
            "operator": "conv" if "conv" in call.kernel else "linear",
            "macs": call.macs,
            "annotated": None,
            "int8": call.integer,
            "kernel": call.kernel,
            "reason": "" if call.integer else "the code calls a float kernel",
        }
        for number, call in enumerate(code.calls)
    ]


def _record(path: Path, store: Store) -> Found | None:
    """The results of the stage that made the file, if it lies in this store."""
    folder = path.resolve().parent
    if folder.parent != store.root / "stages":
        return None
    try:
        record = read_json(folder / "record.json")
    except UserError:
        return {}  # damaged: it vouches for nothing
    known = store.find(str(record.get("kind")), str(record.get("fingerprint")))
    results = known["results"] if known is not None and known.get("kind") == "lower" else {}
    return results if isinstance(results, dict) else {}


def _judge(found: Found, require: float, max_float_weights: float) -> None:
    """Add what is wrong with it, by the same judgement as the gate of a run."""
    if found["ledger"] is None:
        return
    ours: Found = found["metadata"].get(METADATA_KEY) or {}
    if found["metadata"].get("AOTI_DEVICE_KEY", "cpu") != "cpu":
        found["notes"].append("made for a GPU: there its arithmetic is float, whatever its weights are")
    elif ours.get("candidate") == "fp32":
        found["notes"].append("marked as fp32: nothing is to be int8")
    else:
        evidence = Evidence(
            found["int8_mac_share"],
            found["executed_int8_mac_share"],
            found["by_choice_share"],
            found["float_weight_share"],
        )
        missing = why_not_int8(evidence, require, max_float_weights)
        if missing:
            said = f"offered as {ours['candidate']}, and " if "candidate" in ours else ""
            floats = [*(layer for layer in found["layers"] if not layer["int8"]), *found["others"]]
            found["problems"].insert(
                0, f"not quantized: {said}{' and '.join(missing)}; {len(floats)} of "
                f"{len(found['layers']) + len(found['others'])} operations are float"
            )  # fmt: skip
    if not found["vouched"] and ours.get("float_by_choice"):
        found["notes"].append(
            "it says that layers are in float by choice: no record vouches for it; --min-int8-share sets the limit"
        )
    if not found["vouched"] and not found["ran"]:
        found["notes"].append(
            "read, not run: whether its native code comes from the C++ inside is not known; --run shows what runs"
        )
    repacked = {size: count for size, count in found["reorders_per_call"].items() if count}
    if repacked:
        counts = ", ".join(f"{count} at batch {size}" for size, count in repacked.items())
        found["notes"].append(f"weights are packed anew at every call, which is time lost: {counts}")
    if found["ledger"]["duplicates"]:
        named = ", ".join(found["ledger"]["duplicates"][:5])
        found["problems"].append(f"float copies of int8 weights are kept: {named}")


def _judge_machine(found: Found, ours: Found) -> bool:
    """Whether it can be run here; if not, why is added."""
    problems: list[str] = []
    here = str(versions(("torch",))["torch"]).split("+")[0]
    native = "executorch" not in ours  # a .pte is data for its runtime, whatever torch made it
    if native and ours.get("torch") not in (None, here):
        problems.append(f"made by torch {ours['torch']}, here is torch {here}: lower it again")
    made_for = found["metadata"].get("AOTI_MACHINE")
    if made_for not in (None, "", platform.machine()):
        problems.append(f"made for {made_for}, and this machine is {platform.machine()}")
    features = machine()["features"]
    needed = str(found["metadata"].get("AOTI_CPU_ISA", "")).split()
    lacking = [isa for isa in needed if isa in ISA_FEATURES and ISA_FEATURES[isa] not in features]
    if lacking:
        problems.append(f"made for a CPU with {', '.join(lacking)}, which this one has not: it would crash here")
    unknown = [isa for isa in needed if isa not in ISA_FEATURES]
    if unknown:
        found["notes"].append(f"made for a CPU with {', '.join(unknown)}, which is not known here")
    found["problems"] += problems
    if found["metadata"].get("AOTI_DEVICE_KEY", "cpu") != "cpu" and not gpus():
        found["notes"].append("not run: there is no GPU here")
        return False
    return not problems


def _run(own: Path, path: Path, found: Found) -> None:
    """Load it in a fresh process and try batches of 1 and 3; what is wrong is added."""
    import torch

    from raq.artifact.isolated import IsolatedProcess

    sizes = input_shape(found["metadata"])
    if sizes is None:
        found["problems"].append("its input is not known (raq did not make it), so that it cannot be tried")
        return
    images = torch.randn(3, *sizes, generator=torch.Generator().manual_seed(0))
    most = (found["metadata"].get(METADATA_KEY) or {}).get("max_batch")
    try:
        with IsolatedProcess(own, str(found["metadata"].get("AOTI_DEVICE_KEY", "cpu"))) as process:
            network = in_parts(process, most if type(most) is int and 0 < most < len(images) else len(images))
            three = network(images)
            single = torch.cat([network(images[n : n + 1]) for n in range(3)])
            again = network(images)
            told = process.told
            if process.runtime.reports_kernels and found["metadata"].get("AOTI_DEVICE_KEY", "cpu") == "cpu":
                _trace(process, sizes, found)
    except StageError as error:
        found["problems"].append(error.message.replace(str(own), str(path)))
        return
    if not torch.isfinite(three).all() or not torch.isfinite(single).all():
        found["problems"].append("it gives logits that are not finite")
    elif not torch.equal(three, again):
        found["problems"].append("it gives other logits for the same images when run again")
    between = sqnr_db(three.numpy(), single.numpy())
    if between is not None and between < MIN_DB_BETWEEN_BATCHES:
        found["problems"].append(f"image by image it computes something else than for three at once ({between:.1f} dB)")
    found["ran"] = {"runtime": process.runtime.name, "load_s": told["load_s"], "resident_bytes": told["resident_bytes"],
                    "classes": int(three.shape[1]), "batches_sqnr_db": between}  # fmt: skip


def _trace(process: "IsolatedProcess", shape: tuple[int, ...], found: Found) -> None:
    """Let oneDNN tell which kernels it executes; StageError if it ends meanwhile."""
    from raq.artifact.executed import summary

    constants = found["ledger"]["constants"]
    sizes = {math.prod(entry["shape"]) for entry in constants if len(entry["shape"]) > 1}
    total = found["total_macs"]
    if total is None and all(layer["macs"] is not None for layer in found["layers"]):
        total = sum(layer["macs"] for layer in found["layers"])  # of a stranger's: all that its code calls
    known = [layer for layer in found["layers"] if layer["macs"] is not None]
    found |= summary(process.trace(shape, sizes), total, known)
