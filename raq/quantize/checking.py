"""`raq check`: is an artifact quantized, is it whole, is it the one that was evaluated? Ours or a stranger's.

An AOTInductor package is native code, which runs when it is loaded; a .pte is instructions for a runtime that was not
written to withstand a malicious one. So it is read, not loaded, unless the user asks
for that, or a record in the user's own results folder vouches for its digest; and then it runs in a process of its own.
"""

import platform
import shutil
import tempfile
from pathlib import Path
from typing import Any

from raq.environment import gpus, machine, versions
from raq.errors import StageError, UserError
from raq.quantize.artifact import read
from raq.quantize.generated import METADATA_KEY, GeneratedCode, input_shape
from raq.quantize.ledger import ledger
from raq.quantize.parity import sqnr_db
from raq.records import Store, read_json
from raq.stages.call import file_digest

# what the compiler calls the instruction sets, and what /proc/cpuinfo does
ISA_FEATURES = {"AVX2": "avx2", "AVX512": "avx512f", "AVX512_VNNI": "avx512_vnni", "AMX_TILE": "amx_int8",
                "NEON": "asimd"}  # fmt: skip
LEAST_DB_BETWEEN_BATCHES = 20.0
Found = dict[str, Any]


def check(path: Path, results: Path, *, run: bool, require: float) -> Found:
    """What can be said of an artifact, as plain values; `problems` is empty if nothing is wrong with it.

    results: the folder whose records vouch for artifacts that lie in it; run: load it even if none does; require: the
    least share of MACs in int8 of one that is to be int8 (all but those that raq marked fp32).
    Raises UserError if there is no such file.
    """
    if not path.is_file():
        raise UserError(f"{path}: there is no such file", "give the path of an artifact (.pt2 or .pte)")
    with tempfile.TemporaryDirectory() as folder:
        own = Path(folder) / "artifact"  # what is digested is what is read and run
        shutil.copyfile(path, own)
        return _check(path, own, _record(path, Store(results.resolve())), run=run, require=require)


def _check(path: Path, own: Path, record: Found | None, *, run: bool, require: float) -> Found:
    digest = file_digest(own)
    found: Found = {"path": str(path), "sha256": digest, "size_bytes": own.stat().st_size, "vouched": None,
                    "metadata": None, "int8_mac_share": None, "layers": [], "ledger": None,
                    "ran": None, "problems": [], "notes": []}  # fmt: skip
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
    audit = record.get("audit") if record is not None and found["vouched"] else None
    found |= {"metadata": code.metadata, "layers": audit["layers"] if audit else _layers(code),
              "int8_mac_share": audit["int8_mac_share"] if audit else share_of_code(code),
              "ledger": ledger(code).as_record()}  # fmt: skip
    _judge_int8(found, ours, require)
    runs_here = _judge_machine(found, ours)
    if (run or found["vouched"]) and runs_here:
        _run(own, path, found)
    return found


def share_of_code(code: GeneratedCode) -> float | None:
    """Integer kernels' share of the MACs of all kernel calls; None if the shapes of one are not in the code."""
    macs = [call.macs for call in code.calls]
    if any(count is None for count in macs) or not sum(count or 0 for count in macs):
        return None
    return sum(call.macs or 0 for call in code.calls if call.integer) / sum(count or 0 for count in macs)


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


def _judge_int8(found: Found, ours: Found, require: float) -> None:
    share, floats = found["int8_mac_share"], [layer["name"] for layer in found["layers"] if not layer["int8"]]
    if found["metadata"].get("AOTI_DEVICE_KEY", "cpu") != "cpu":
        found["notes"].append("made for a GPU: there its arithmetic is float, whatever its weights are")
    elif ours.get("candidate") == "fp32":
        found["notes"].append("marked as fp32: nothing is to be int8")
    elif share is None or share < require:
        said = f"offered as {ours['candidate']}, and " if "candidate" in ours else ""
        known = "an unknown share" if share is None else f"{100 * share:.1f}%"
        found["problems"].append(
            f"not quantized: {said}{known} of its MACs is int8 ({100 * require:g}% is required); "
            f"{len(floats)} of {len(found['layers'])} layers are float"
        )
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

    from raq.quantize.fresh import FreshProcess
    from raq.quantize.pte import in_parts

    sizes = input_shape(found["metadata"])
    if sizes is None:
        found["problems"].append("its input is not known (raq did not make it), so that it cannot be tried")
        return
    images = torch.randn(3, *sizes, generator=torch.Generator().manual_seed(0))
    most = (found["metadata"].get(METADATA_KEY) or {}).get("max_batch")
    try:
        with FreshProcess(own, str(found["metadata"].get("AOTI_DEVICE_KEY", "cpu"))) as process:
            network = in_parts(process, most if type(most) is int and 0 < most < len(images) else len(images))
            three = network(images)
            single = torch.cat([network(images[n : n + 1]) for n in range(3)])
            again = network(images)
            told = process.told
    except StageError as error:
        found["problems"].append(error.message.replace(str(own), str(path)))
        return
    if not torch.isfinite(three).all() or not torch.isfinite(single).all():
        found["problems"].append("it gives logits that are not finite")
    elif not torch.equal(three, again):
        found["problems"].append("it gives other logits for the same images when run again")
    between = sqnr_db(three.numpy(), single.numpy())
    if between is not None and between < LEAST_DB_BETWEEN_BATCHES:
        found["problems"].append(f"image by image it computes something else than for three at once ({between:.1f} dB)")
    found["ran"] = {"runtime": process.runtime, "load_s": told["load_s"], "resident_bytes": told["resident_bytes"],
                    "classes": int(three.shape[1]), "batches_sqnr_db": between}  # fmt: skip
