"""What becomes of 30 of timm's architectures, of 25 families: exported, int8 share, QAT prepared, lowered, speed.

    uv run --with timm python tests/benchmarks/timm_models.py [--only fastvit_t8,...] [--budget SECONDS]

Weights are random and batch norms settled on a few random images: speeds do not depend on them, and accuracy is not
shown. A line a model is printed as it is done; one that has a record is not done again. Records go to
results/reference/timm. Run it on an otherwise idle machine.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from zoo import settle

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "results" / "reference" / "timm"
SIDE, CLASSES, TIMEOUT_S = 64, 100, 600
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


def examine(name: str, budget_s: float) -> dict[str, Any]:
    """All that is found of one model."""
    import torch

    from raq.artifact import inductor
    from raq.artifact.account import what_ran
    from raq.artifact.inspection import inspect_model
    from raq.artifact.isolated import IsolatedProcess
    from raq.bench.latency import measure
    from raq.bench.messages import ContenderSettings
    from raq.environment import available_cpus
    from raq.experiment.inputs import image_input
    from raq.experiment.measurement import Bench
    from raq.experiment.schema import Calibration
    from raq.model.parity import sqnr_db
    from raq.model.zoo import build_model
    from raq.quantize.convert import convert
    from raq.quantize.export import export_network
    from raq.quantize.ptq import prepare

    side = LARGER.get(name, SIDE)
    inputs = (image_input((3, side, side)),)
    torch.manual_seed(0)
    found: dict[str, Any] = {"model": name, "side": side}
    looked = inspect_model(f"timm:{name}", inputs, CLASSES).as_record()
    kept = ("exports", "int8_mac_share", "qat", "parameters", "macs", "reason", "float_layers", "others")
    found |= {key: looked[key] for key in kept}
    if looked["reason"] is not None or not budget_s:
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
    with tempfile.TemporaryDirectory() as folder:
        paths = {kind: Path(folder) / f"{kind}.pt2" for kind in programs}
        for kind, program in programs.items():
            inductor.lower(program, paths[kind], {"candidate": kind, "inputs": [one.plain() for one in inputs]})
            with IsolatedProcess(paths[kind]) as process:
                found[f"{kind}_sqnr_db"] = sqnr_db(expected.numpy(), process(images).numpy())
                ran = what_ran(process, inputs, [], looked["macs"], [])
            found[f"{kind}_executed"] = None if ran is None else ran.executed_int8_mac_share
        torch.save(network.state_dict(), Path(folder) / "weights.pt")
        shared: dict[str, Any] = {"device": "cpu", "inputs": inputs, "threads": len(available_cpus()),
                                  "model": f"timm:{name}", "classes": CLASSES, "working_directory": None}  # fmt: skip
        contenders = [
            ContenderSettings("fp32", "eager", path=f"{folder}/weights.pt", fp32=True, **shared),
            ContenderSettings("fp32", "inductor", path=str(paths["fp32"]), fp32=True, **shared),
            ContenderSettings("int8", "inductor", path=str(paths["int8"]), **shared),
        ]
        protocol = Bench(batch_sizes=(1, 8), precision=0.02, budget_s=budget_s)
        measured = measure(contenders, protocol, available_cpus())
        rows = measured["rows"]
    found["rows"] = [{k: v for k, v in row.items() if not k.startswith("round_")} for row in rows]
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only")
    parser.add_argument("--budget", type=float, default=20.0, help="seconds of measuring a model; 0: only look at it")
    parser.add_argument("--output", type=Path, default=REFERENCE)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(examine(options.one, options.budget)))
        return
    options.output.mkdir(parents=True, exist_ok=True)
    for name in options.only.split(",") if options.only else MODELS:
        path = options.output / f"{name}.json"
        if path.is_file():
            continue
        command = [sys.executable, __file__, "--one", name, "--budget", str(options.budget)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
            found = json.loads(done.stdout.splitlines()[-1])
        except subprocess.TimeoutExpired:
            found = {"model": name, "reason": f"longer than {TIMEOUT_S} s"}
        except (ValueError, IndexError):
            found = {"model": name, "reason": (done.stderr.strip().splitlines() or ["no output"])[-1][:300]}
        path.write_text(json.dumps(found, indent=1) + "\n")
        print(name, found.get("int8_mac_share"), found.get("qat"), found["reason"], flush=True)


if __name__ == "__main__":
    main()
