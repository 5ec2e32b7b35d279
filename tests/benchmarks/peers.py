"""raq's artifacts beside what users would take otherwise: OpenVINO with NNCF's int8, ONNX Runtime, compiled FP32.

    uv run --with nncf python tests/benchmarks/peers.py [--only resnet50,vit_b_16] [--work FOLDER] [--budget SECONDS]

Every contender has a process of its own, all in turns, launch after launch (raq/bench): run it on an otherwise idle
machine. Weights are random and batch normalisation has seen a few random images: speeds do not depend on them, and
accuracy is not shown. The records and their table go to results/reference/peers; a model that has a record is not
measured again.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from zoo import settle

from raq.environment import environment
from raq.store.files import now, write_json

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "results" / "reference" / "peers"
MODELS = {
    "resnet18-cifar": (32, (1, 128)), "torchvision:resnet50": (224, (1, 8)), "torchvision:mobilenet_v2": (224, (1, 8)),
    "torchvision:resnext50_32x4d": (224, (1, 8)), "torchvision:efficientnet_b0": (224, (1, 8)),
    "torchvision:vit_b_16": (224, (1, 8)),
}  # fmt: skip
BASELINE = "nncf"
CALIBRATION_IMAGES = 8
# name, runtime, file, whether it is FP32; the first is what the others are compared with
CONTENDERS = (
    (BASELINE, "openvino", "nncf.xml", False), ("ptq-openvino", "openvino", "int8.openvino.onnx", False),
    ("ptq", "inductor", "int8.pt2", False), ("fp32", "inductor", "fp32.pt2", True),
    ("fp32-openvino", "openvino", "fp32.openvino.onnx", True),
    ("fp32-onnxruntime", "onnxruntime", "fp32.onnxruntime.onnx", True),
)  # fmt: skip


def make(model: str, folder: Path) -> None:
    """All contenders' files, and what of each int8 one ran in int8."""
    import nncf
    import openvino
    import torch

    from raq.artifact import inductor, onnxruntime
    from raq.artifact import openvino as our_openvino
    from raq.artifact.account import what_ran
    from raq.artifact.isolated import IsolatedProcess
    from raq.artifact.runtimes import read
    from raq.experiment.inputs import image_input
    from raq.experiment.ptq import Calibration
    from raq.model.zoo import build_model
    from raq.quantize.convert import convert
    from raq.quantize.export import export_network
    from raq.quantize.ptq import prepare

    side, sizes = MODELS[model]
    torch.manual_seed(0)
    images = torch.randn(CALIBRATION_IMAGES, 3, side, side, generator=torch.Generator().manual_seed(0))
    network = build_model(model, 1000 if side == 224 else 10, None)
    settle(network, side)
    network.eval()
    prepared = prepare(network, images[:2], "x86", Calibration(), reduce_range=False)
    with torch.no_grad():
        for n in range(0, len(images), 2):
            prepared(images[n : n + 2])
    programs = {"fp32": export_network(network, images[:2]), "int8": convert(prepared, images[:2])}
    for name, program in programs.items():
        metadata = {"candidate": name, "input": [3, side, side], "kind": "fp32" if name == "fp32" else "ptq"}
        inductor.lower(program, folder / f"{name}.pt2", metadata, min_batch=min(sizes))
        our_openvino.lower(program, folder / f"{name}.openvino.onnx", metadata)
        onnxruntime.lower(program, folder / f"{name}.onnxruntime.onnx", metadata)
    plain = openvino.convert_model(folder / "fp32.openvino.onnx")  # fuses batch norms, as NNCF expects
    kind = {"model_type": nncf.ModelType.TRANSFORMER} if "vit" in model else {}
    theirs = nncf.quantize(plain, nncf.Dataset([image[None].numpy() for image in images]), **kind)
    openvino.save_model(theirs, folder / "nncf.xml", compress_to_fp16=False)
    shares = {}
    for name in ("int8.pt2", "int8.openvino.onnx", "int8.onnxruntime.onnx"):
        shapes = [constant.shape for constant in read(folder / name).constants]
        with IsolatedProcess(folder / name, threads=2) as process:
            found = what_ran(process, (image_input((3, side, side)),), shapes, None, [])
        assert found is not None
        shares[name] = {"int8_mac_share": found.executed_int8_mac_share, "reorders_per_call": found.reorders_per_call}
    write_json(folder / "made.json", shares)


def measured(model: str, folder: Path, budget_s: float) -> dict[str, Any]:
    """The latencies of all contenders, in turns."""
    from raq.bench.latency import measure
    from raq.bench.messages import ContenderSettings
    from raq.environment import available_cpus
    from raq.experiment.inputs import image_input
    from raq.experiment.measurement import Bench

    side, sizes = MODELS[model]
    cpus = available_cpus()
    contenders = [
        ContenderSettings(
            name,
            runtime,
            "cpu",
            str(folder / file),
            (image_input((3, side, side)),),
            len(cpus),
            "",
            0,
            None,
            fp32=is_fp32,
        )
        for name, runtime, file, is_fp32 in CONTENDERS
    ]
    protocol = Bench(batch_sizes=sizes, rounds=6, repetitions=2, precision=0.01, budget_s=budget_s)
    found = measure(contenders, protocol, cpus)
    found.pop("samples")
    return found


def table(records: list[dict[str, Any]]) -> str:
    """The table as Markdown: milliseconds, and below the time over that of the baseline."""
    lines = [
        f"| model | batch | {' | '.join(name for name, *_ in CONTENDERS)} |",
        f"|---|---|{'---|' * len(CONTENDERS)}",
    ]
    for record in records:
        rows = {(row["candidate"], row["batch_size"]): row for row in record["measured"]["rows"]}
        for size in MODELS[record["model"]][1]:
            cells = [_cell(rows[name, size]) for name, *_ in CONTENDERS]
            lines.append(f"| {record['model'].removeprefix('torchvision:')} | {size} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(row: dict[str, Any]) -> str:
    if row["candidate"] == BASELINE:
        return f"{row['p50_ms']:.2f} ms"
    interval = row["speedup_interval"]
    bounds = f" ({1 / interval[1]:.2f} to {1 / interval[0]:.2f})" if interval else " (no interval)"
    return f"{row['p50_ms']:.2f} ms: {1 / row['speedup']:.2f}{bounds}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only")
    parser.add_argument("--work", type=Path, default=ROOT / "results" / "peers")
    parser.add_argument("--budget", type=float, default=150.0)
    parser.add_argument("--make")
    options = parser.parse_args()
    if options.make:
        make(options.make, options.work / options.make.replace(":", "-"))
        return
    REFERENCE.mkdir(parents=True, exist_ok=True)
    wanted = options.only.split(",") if options.only else [name.removeprefix("torchvision:") for name in MODELS]
    for model in (name for name in MODELS if name.removeprefix("torchvision:") in wanted):
        folder, short = options.work / model.replace(":", "-"), model.removeprefix("torchvision:")
        folder.mkdir(parents=True, exist_ok=True)
        record = REFERENCE / f"{short}.json"
        if not (folder / "made.json").is_file():
            command = [sys.executable, __file__, "--make", model, "--work", str(options.work)]
            subprocess.run(command, check=True, timeout=1500)
        if not record.is_file():
            found = measured(model, folder, options.budget)
            shares = json.loads((folder / "made.json").read_text())
            write_json(
                record,
                {
                    "model": model, "measured_at": now(), "environment": environment(), "artifacts": shares,
                    "measured": found,
                },
            )  # fmt: skip
        print(table([json.loads(record.read_text())]), flush=True)
    records = [json.loads(path.read_text()) for path in sorted(REFERENCE.glob("*.json"))]
    (REFERENCE / "table.md").write_text(table(records))


if __name__ == "__main__":
    main()
