"""`raq check`: is an artifact quantized, is it whole, is it the one that was evaluated? Ours or a stranger's.

An AOTInductor package is native code, which runs when it is loaded. So it is read, not loaded, unless the user asks
for that, or a record of ours beside it vouches for its digest; and then it runs in a process of its own.
"""

from pathlib import Path
from typing import Any

from raq.environment import machine, versions
from raq.errors import StageError, UserError
from raq.quantize.generated import METADATA_KEY, GeneratedCode, read_package
from raq.quantize.ledger import ledger
from raq.records import read_json
from raq.stages import file_digest

# what the compiler calls the instruction sets, and what /proc/cpuinfo does
ISA_FEATURES = {"AVX2": "avx2", "AVX512": "avx512f", "AVX512_VNNI": "avx512_vnni", "AMX_TILE": "amx_int8"}
Found = dict[str, Any]


def check(path: Path, *, run: bool, require: float) -> Found:
    """What can be said of an artifact, as plain values; `problems` is empty if nothing is wrong with it.

    run: load it even if no record vouches for it; require: the least share of MACs in int8 of one that is to be int8
    (all but those that raq marked fp32). Raises UserError if there is no such file.
    """
    if not path.is_file():
        raise UserError(f"{path}: there is no such file", "give the path of an artifact (.pt2)")
    record = _record_beside(path)
    digest = file_digest(path)
    found: Found = {"path": str(path), "sha256": digest, "size_bytes": path.stat().st_size, "vouched": None,
                    "metadata": None, "int8_mac_share": None, "layers": [], "kernels": {}, "ledger": None,
                    "ran": None, "problems": []}  # fmt: skip
    if record is not None:
        found["vouched"] = record["results"].get("sha256") == digest
        if not found["vouched"]:
            found["problems"].append("it is not the file that was evaluated: its digest is not the one in its record")
    try:
        code = read_package(path)
    except StageError as error:
        found["problems"].append(error.message)
        return found
    ours = code.metadata.get(METADATA_KEY)
    audit = record["results"].get("audit") if record is not None and found["vouched"] else None
    found |= {
        "metadata": code.metadata,
        "layers": audit["layers"] if audit else _layers(code),
        "int8_mac_share": audit["int8_mac_share"] if audit else share_of_code(code),
        "ledger": ledger(code).as_record(),
    }
    found["problems"] += _problems(found, ours or {}, require)
    if run or found["vouched"]:
        found["ran"] = _run(path, (ours or {}).get("input"), found["problems"])
    return found


def share_of_code(code: GeneratedCode) -> float | None:
    """Integer kernels' share of the MACs of all kernel calls; None if the shapes of one are not in the code."""
    macs = [call.macs for call in code.calls]
    if not macs or any(count is None for count in macs):
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


def _record_beside(path: Path) -> Found | None:
    """The record of the stage that made the file, where it lies in a results folder."""
    try:
        record = read_json(path.resolve().parent / "record.json")
    except UserError:
        return None
    return record if record.get("kind") == "lower" and isinstance(record.get("results"), dict) else None


def _problems(found: Found, ours: Found, require: float) -> list[str]:
    problems = []
    share, floats = found["int8_mac_share"], [layer["name"] for layer in found["layers"] if not layer["int8"]]
    on_gpu = found["metadata"].get("AOTI_DEVICE_KEY", "cpu") != "cpu"
    if ours.get("candidate") != "fp32" and not on_gpu and (share is None or share < require):
        said = f"offered as {ours['candidate']}, and " if "candidate" in ours else ""
        known = "an unknown share" if share is None else f"{100 * share:.1f}%"
        problems.append(
            f"not quantized: {said}{known} of its MACs is int8 ({100 * require:g}% is required); "
            f"{len(floats)} of {len(found['layers'])} layers are float"
        )
    if found["ledger"]["duplicates"]:
        problems.append(f"float copies of int8 weights are kept: {', '.join(found['ledger']['duplicates'][:5])}")
    here = str(versions(("torch",))["torch"]).split("+")[0]
    if ours.get("torch") not in (None, here):
        problems.append(f"made by torch {ours['torch']}, here is torch {here}: lower it again")
    features = machine()["features"]
    lacking = [
        isa
        for isa in str(found["metadata"].get("AOTI_CPU_ISA", "")).split()
        if isa in ISA_FEATURES and ISA_FEATURES[isa] not in features
    ]
    if lacking:
        problems.append(f"made for a CPU with {', '.join(lacking)}, which this one has not: it would crash here")
    return problems


def _run(path: Path, shape: list[int] | None, problems: list[str]) -> Found | None:
    """Load it in a fresh process and try batches of 1 and 3; what is wrong is added to `problems`."""
    import torch

    from raq.quantize.fresh import FreshProcess

    if problems and any("crash" in problem or "torch" in problem for problem in problems):
        return None
    if shape is None:
        problems.append("its input is not known (raq did not make it), so that it cannot be tried")
        return None
    images = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    try:
        with FreshProcess(path) as network:
            three = network(images)
            single = torch.cat([network(images[n : n + 1]) for n in range(3)])
            again = network(images)
    except StageError as error:
        problems.append(error.message)
        return None
    if not torch.isfinite(three).all():
        problems.append("it gives logits that are not finite")
    if not torch.equal(three, again):
        problems.append("it gives other logits for the same images when run again")
    return {
        "load_s": network.told["load_s"],
        "resident_bytes": network.told["resident_bytes"],
        "classes": int(three.shape[1]),
        "largest_difference_between_batches": float((three - single).abs().max()),
    }
