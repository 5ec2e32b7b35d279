"""What becomes of 30 of timm's architectures, of 25 families: exported, int8 share, QAT prepared, lowered, speed.

    uv run --with timm python tests/benchmarks/timm_models.py [--only fastvit_t8,...] [--work FOLDER] [--time SECONDS]

Weights are random and batch norms settled on a few random images: speeds do not depend on them, and accuracy is not
shown. Each model is made in a process of its own, into FOLDER; one that is there is not made again. With --time, made
ones are then measured, for so many seconds each: run that on an otherwise idle machine. Records go to
results/reference/timm.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from zoo import reorders, settle

from raq.environment import environment
from raq.store.files import now, read_json, write_json

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "results" / "reference" / "timm"
SIDE, CLASSES, TIMEOUT_S = 64, 100, 1800
LARGER = {"vit_tiny_patch16_224": 224, "deit_tiny_patch16_224": 224, "swin_tiny_patch4_window7_224": 224,
          "mixer_s32_224": 224, "resmlp_12_224": 224, "cait_xxs24_224": 224, "pit_ti_224": 224, "levit_128s": 224,
          "convit_tiny": 224, "coat_tiny": 224, "xcit_nano_12_p16_224": 224}  # fmt: skip
MODELS = (
    "resnet18", "resnetv2_50", "seresnet18", "res2net50_26w_4s", "resnest14d", "skresnet18", "densenet121", "dla34",
    "mobilenetv3_small_100", "efficientnet_b0", "efficientnet_lite0", "mnasnet_100", "fbnetc_100", "ghostnet_100",
    "rexnet_100", "regnetx_002", "regnety_002", "hrnet_w18_small", "vovnet39a", "dpn48b", "convnext_atto", "fastvit_t8",
    "repvgg_a0", "mobileone_s0", "edgenext_xx_small", "poolformer_s12", "vit_tiny_patch16_224", "mixer_s32_224",
    "levit_128s", "xcit_nano_12_p16_224",
)  # fmt: skip


def make(name: str, folder: Path) -> dict[str, Any]:
    """What is found of one model without timing; its packages and weights are left in the folder."""
    import torch

    from raq.artifact import inductor
    from raq.artifact.account import what_ran
    from raq.artifact.inspection import inspect_model
    from raq.artifact.isolated import IsolatedProcess
    from raq.experiment.inputs import image_input
    from raq.experiment.ptq import Calibration
    from raq.model.parity import sqnr_db
    from raq.model.zoo import build_model
    from raq.quantize.convert import convert
    from raq.quantize.export import export_network
    from raq.quantize.ptq import prepare

    side = LARGER.get(name, SIDE)
    inputs = (image_input((3, side, side)),)
    torch.manual_seed(0)
    found: dict[str, Any] = {"model": name, "side": side, "made_at": now(), "environment": environment()}
    looked = inspect_model(f"timm:{name}", inputs, CLASSES).as_record()
    kept = ("exports", "int8_mac_share", "qat", "parameters", "macs", "reason", "float_layers", "others")
    found |= {key: looked[key] for key in kept}
    if looked["reason"] is not None:
        return found
    network = build_model(f"timm:{name}", CLASSES)
    settle(network, side)
    network.eval()
    images = torch.randn(8, 3, side, side)
    prepared = prepare(network, images[:2], "x86", Calibration(), reduce_range=False)
    with torch.no_grad():
        prepared(images)
        expected = network(images)
    programs = {"fp32": export_network(network, images[:2]), "int8": convert(prepared, images[:2])}
    for kind, program in programs.items():
        path = folder / f"{kind}.pt2"
        inductor.lower(program, path, {"candidate": kind, "inputs": [one.plain() for one in inputs]})
        with IsolatedProcess(path) as process:
            found[f"{kind}_sqnr_db"] = sqnr_db(expected.numpy(), process(images).numpy())
            ran = what_ran(process, inputs, [], looked["macs"], [])
        found[f"{kind}_executed"] = None if ran is None else ran.executed_int8_mac_share
        found[f"{kind}_reorders"] = reorders(path, (3, side, side))
    torch.save(network.state_dict(), folder / "weights.pt")
    return found


def measured(name: str, folder: Path, budget_s: float) -> dict[str, Any]:
    """Latency rows of both packages and the FP32 network in eager mode, in turns, without their rounds.

    With int8's speedup over either FP32, with its interval.
    """
    from raq.bench.latency import measure
    from raq.bench.messages import ContenderSettings
    from raq.bench.ratio_statistics import paired_ratio
    from raq.environment import available_cpus
    from raq.experiment.inputs import image_input
    from raq.experiment.measurement import Bench
    from raq.report.ratios import row_ratios

    side = LARGER.get(name, SIDE)
    shared: dict[str, Any] = {"device": "cpu", "inputs": (image_input((3, side, side)),),
                              "threads": len(available_cpus()), "model": f"timm:{name}", "classes": CLASSES,
                              "working_directory": None}  # fmt: skip
    contenders = [
        ContenderSettings("fp32", "eager", path=str(folder / "weights.pt"), fp32=True, **shared),
        ContenderSettings("fp32", "inductor", path=str(folder / "fp32.pt2"), fp32=True, **shared),
        ContenderSettings("int8", "inductor", path=str(folder / "int8.pt2"), **shared),
    ]
    found = measure(contenders, Bench(batch_sizes=(1, 8), precision=0.02, budget_s=budget_s), available_cpus())
    speedups = []
    for row in found["rows"]:
        int8 = next(r for r in found["rows"] if (r["candidate"], r["batch_size"]) == ("int8", row["batch_size"]))
        if row is not int8:
            value, interval = paired_ratio(row_ratios(row, int8))
            over = f"{row['candidate']}/{row['runtime']}"
            speedups.append({"batch_size": row["batch_size"], "over": over, "value": value, "interval": interval})
    rows = [{key: value for key, value in row.items() if not key.startswith("round_")} for row in found["rows"]]
    return {"rows": rows, "speedups": speedups}


def make_in_process(name: str, folder: Path) -> dict[str, Any]:
    """`make` in a process of its own: what ends that is the model's reason."""
    command = [sys.executable, __file__, "--make", name, "--work", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        found = {"model": name, "reason": f"longer than {TIMEOUT_S} s"}
    except (ValueError, IndexError):
        found = {"model": name, "reason": (done.stderr.strip().splitlines() or ["no output"])[-1][:300]}
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only")
    parser.add_argument("--work", type=Path, default=ROOT / "results" / "timm")
    parser.add_argument("--time", type=float, help="seconds of measuring a model")
    parser.add_argument("--make", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make:
        print(json.dumps(make(options.make, options.work)))
        return
    REFERENCE.mkdir(parents=True, exist_ok=True)
    for name in options.only.split(",") if options.only else MODELS:
        folder, record = options.work / name, REFERENCE / f"{name}.json"
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "made.json").is_file():
            write_json(folder / "made.json", make_in_process(name, folder))
        found = read_json(folder / "made.json")
        known = read_json(record) if record.is_file() else {}
        if known.get("made_at") != found.get("made_at") or "speedups" not in known:
            known = {}
        if options.time and found["reason"] is None and not known:
            known = {**measured(name, folder, options.time), "measured_at": now()}
        found |= {key: known[key] for key in ("rows", "speedups", "measured_at") if key in known}
        write_json(record, found)
        print(name, found.get("int8_mac_share"), found.get("qat"), found["reason"], flush=True)


if __name__ == "__main__":
    main()
