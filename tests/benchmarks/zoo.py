"""torchvision's classifiers through export, PTQ, QAT, lower and audit: what works, how much of it is int8, how fast.

    uv run python tests/benchmarks/zoo.py [--only resnet18,vit_b_16] [--work FOLDER] [--time]

Each model has a process of its own; finished ones are not done again. Weights are random (no download), batch
normalisation has seen a few random images: shares, sizes and speeds do not depend on them, accuracy is not shown. How
many weights a call of either artifact packs anew is what oneDNN reports. With --time the artifacts that are there, FP32
compiled by Inductor among them, are measured in turns, beside the FP32 network in eager mode, for --budget seconds
each (75): run that on an otherwise idle machine. The table goes to results/reference/zoo.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from raq.environment import environment
from raq.errors import RaqError
from raq.store.files import now, write_json

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "results" / "reference" / "zoo"
MODELS = (
    "resnet18", "resnet34", "resnet50", "resnext50_32x4d", "mobilenet_v2", "mobilenet_v3_large", "efficientnet_b0",
    "shufflenet_v2_x1_0", "densenet121", "squeezenet1_1", "vgg16_bn", "googlenet", "regnet_y_400mf", "mnasnet1_0",
    "convnext_tiny", "vit_b_16",
)  # fmt: skip
CLASSES, SIDE, CALIBRATION_IMAGES, BATCH, TIMEOUT_S = 1000, 224, 8, 8, 1500


def settle(network: Any, side: int = SIDE) -> None:
    """Let batch normalisation see random images, so that activations have a sensible size in evaluation mode."""
    import torch

    norms = [m for m in network.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    usual = [module.momentum for module in norms]
    for module in norms:
        module.momentum = None  # the mean over all that it sees
    with torch.no_grad():
        network.train()(torch.randn(8, 3, side, side, generator=torch.Generator().manual_seed(1)))
    for module, momentum in zip(norms, usual, strict=True):
        module.momentum = momentum


def one(name: str, folder: Path) -> dict[str, Any]:
    """Take one model through; what fails is reported by its error, and what comes after it is left out."""
    import torch
    from torchao.quantization.pt2e import move_exported_model_to_eval

    from raq.artifact.audit import audit, audit_graph
    from raq.artifact.generated_code import read_package
    from raq.artifact.inductor import load, lower
    from raq.experiment.ptq import Calibration
    from raq.model.parity import sqnr_db
    from raq.model.zoo import build_model
    from raq.quantize.convert import convert, tensor_bytes
    from raq.quantize.export import export_network
    from raq.quantize.ptq import prepare
    from raq.quantize.qat import prepare_qat, set_graph_mode

    torch.set_num_threads(2)
    torch.manual_seed(0)
    found: dict[str, Any] = {"model": name, "failed": None, "why": None, "seconds": {}}
    images = torch.randn(CALIBRATION_IMAGES, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    example = images[:2]
    network = build_model(f"torchvision:{name}", CLASSES, None)
    settle(network)
    torch.save(network.state_dict(), folder / "weights.pt")
    step, started = "", time.perf_counter()

    def begin(what: str) -> None:
        nonlocal step, started
        if step:
            found["seconds"][step] = round(time.perf_counter() - started, 1)
        step, started = what, time.perf_counter()

    try:
        begin("ptq")
        network.eval()
        with torch.no_grad():
            expected = network(images)
            prepared = prepare(network, example, "x86", Calibration(), reduce_range=False)
            move_exported_model_to_eval(prepared)
            for n in range(0, len(images), 2):
                prepared(images[n : n + 2])
            program = convert(prepared, example)
            simulated = program.module()(images)
        found["sqnr_db"] = sqnr_db(expected.numpy(), simulated.numpy())
        fp32_bytes = sum(t.numel() * t.element_size() for t in network.state_dict().values())
        found |= {"fp32_bytes": fp32_bytes, "weight_bytes": tensor_bytes(program)}
        graph = audit_graph(program)
        found["graph_share"] = sum(r.macs for r in graph if r.annotated) / sum(r.macs for r in graph)
        begin("lower")
        lower(program, folder / "int8.pt2", {"candidate": "ptq", "input": [3, SIDE, SIDE]})
        begin("lower fp32")
        lower(export_network(network, example), folder / "fp32.pt2", {"candidate": "fp32", "input": [3, SIDE, SIDE]})
        begin("trace")
        found["reorders_per_call"] = {
            kind: reorders(folder / f"{kind}.pt2", (3, SIDE, SIDE)) for kind in ("int8", "fp32")
        }
        audited = audit(program, read_package(folder / "int8.pt2"))
        found |= {"int8_mac_share": audited.int8_mac_share, "problem": audited.problem, "kernels": audited.kernels}
        found["float_layers"] = [[r.name, r.macs, r.reason] for r in audited.layers if not r.int8]
        begin("run")
        with torch.no_grad():
            lowered = load(folder / "int8.pt2")(images)
        found["lowered_sqnr_db"] = sqnr_db(simulated.numpy(), lowered.numpy())
        begin("qat")
        graph_module = prepare_qat(network, example, "x86", reduce_range=False)
        set_graph_mode(graph_module, training=True, norms=True)
        loss = torch.nn.functional.cross_entropy(graph_module(images[:4]), torch.arange(4))
        loss.backward()
        found["qat_loss"] = float(loss)
        set_graph_mode(graph_module, training=False, norms=False)
        trained = audit_graph(convert(graph_module, example))
        found["qat_graph_share"] = sum(r.macs for r in trained if r.annotated) / sum(r.macs for r in trained)
        begin("")
    except RaqError as error:
        found |= {"failed": step, "why": error.message}
    except Exception as error:  # a failure is what this table is about
        found |= {"failed": step, "why": f"{type(error).__name__}: {str(error).strip().splitlines()[0][:300]}"}
    return found


def reorders(path: Path, shape: tuple[int, int, int]) -> dict[str, int]:
    """How many weights a call of the artifact packs anew, by batch size, as oneDNN reports it."""
    from raq.artifact.account import what_ran
    from raq.artifact.isolated import IsolatedProcess
    from raq.artifact.runtimes import RUNTIMES, read
    from raq.artifact.sizes import ledger
    from raq.experiment.inputs import image_input

    shapes = [entry.shape for entry in ledger(read(path)).constants]
    with IsolatedProcess(path, "cpu", 2, RUNTIMES["inductor"]) as process:
        found = what_ran(process, (image_input(shape),), shapes, None, [])
    return {} if found is None else found.reorders_per_call


def measured(name: str, folder: Path, budget_s: float) -> list[dict[str, Any]]:
    """Latency rows of both artifacts and the FP32 network in eager mode, in turns."""
    from raq.bench.latency import measure
    from raq.bench.messages import ContenderSettings
    from raq.environment import available_cpus
    from raq.experiment.inputs import image_input
    from raq.experiment.measurement import Bench

    cpus = available_cpus()
    shared: dict[str, Any] = {
        "device": "cpu", "inputs": (image_input((3, SIDE, SIDE)),), "threads": len(cpus),
        "model": f"torchvision:{name}",
        "classes": CLASSES, "working_directory": None,
    }  # fmt: skip
    contenders = [
        ContenderSettings("fp32", "eager", path=str(folder / "weights.pt"), fp32=True, **shared),
        ContenderSettings("fp32", "inductor", path=str(folder / "fp32.pt2"), fp32=True, **shared),
        ContenderSettings("int8", "inductor", path=str(folder / "int8.pt2"), **shared),
    ]
    protocol = Bench(batch_sizes=(1, BATCH), precision=0.02, budget_s=budget_s)
    rows: list[dict[str, Any]] = measure(contenders, protocol, cpus)["rows"]
    return rows


def over_best_fp32(rows: list[dict[str, Any]], size: int) -> str:
    """How many times as fast int8 is as the faster of eager and compiled FP32 at a batch size, with its interval."""
    from raq.bench.ratio_statistics import paired_ratio
    from raq.report.ratios import fastest, row_ratios

    here: list[Any] = [row for row in rows if row["batch_size"] == size]
    int8 = [row for row in here if row["candidate"] == "int8"]
    plain = fastest([row for row in here if row["candidate"] == "fp32"])
    if not int8 or plain is None:
        return ""
    value, interval = paired_ratio(row_ratios(plain, int8[0]))
    found = f"{value:.2f}" + (f" ({interval[0]:.2f} to {interval[1]:.2f})" if interval else "")
    return found + (", eager" if plain["runtime"] == "eager" else "")


def table(rows: list[dict[str, Any]]) -> str:
    """The table as Markdown."""
    lines = [
        "| model | int8 share of MACs | QAT, share in the graph | weights, MB | smaller "
        "| ms, batch 1: eager, compiled, int8 | over best FP32 "
        f"| ms, batch {BATCH}: the same | over best FP32 | launches | rounds of int8, disturbed "
        f"| weights packed anew a call, batch 1/{BATCH}: int8; FP32 | float layers, or why not |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        share = row.get("int8_mac_share")
        reasons: dict[str, list[str]] = {}
        for layer, _, reason in row.get("float_layers", []):
            reasons.setdefault(reason, []).append(layer)
        why = "; ".join(f"{len(layers)}: {reason}" for reason, layers in reasons.items())
        why = f"{row['failed']}: {row['why']}" + (f"; {why}" if why else "") if row["failed"] else why
        cells = ["" if share is None else f"{share:.3f}"]
        cells.append(f"{row['qat_graph_share']:.3f}" if "qat_graph_share" in row else "no")
        sized = "weight_bytes" in row
        cells.append(f"{row['weight_bytes'] / 1e6:.1f}" if sized else "")
        cells.append(f"{row['fp32_bytes'] / row['weight_bytes']:.2f}x" if sized else "")
        latency = row.get("latency", [])
        for size in (1, BATCH):
            cells.append(", ".join(f"{r['p50_ms']:.1f}" for r in latency if r["batch_size"] == size))
            cells.append(over_best_fp32(latency, size))
        launches = [len(set(r["round_launch"])) for r in latency if r["candidate"] == "int8"]
        cells.append(str(min(launches)) if launches else "")
        int8 = [row for row in latency if row["candidate"] == "int8"]
        cells.append(", ".join(f"{r['disturbed_rounds']} of {r['rounds']}" for r in int8))
        counts = row.get("reorders_per_call", {})
        cells.append(
            "; ".join("/".join(str(counts[kind].get(size, "?")) for size in ("1", str(BATCH))) for kind in counts)
        )
        lines.append(f"| {row['model']} | {' | '.join(cells)} | {row.get('problem') or ''} {why} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only")
    parser.add_argument("--work", type=Path, default=ROOT / "results" / "zoo")
    parser.add_argument("--time", action="store_true")
    parser.add_argument("--budget", type=float, default=75.0)
    parser.add_argument("--one")
    options = parser.parse_args()
    names = options.only.split(",") if options.only else MODELS
    if options.one:
        folder = options.work / options.one
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "found.json", one(options.one, folder))
        return
    rows = []
    for name in names:
        folder = options.work / name
        file = folder / "found.json"
        if not file.is_file():
            command = [sys.executable, __file__, "--one", name, "--work", str(options.work)]
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / "log").open("w") as log:
                try:
                    subprocess.run(command, check=True, timeout=TIMEOUT_S, stdout=log, stderr=log)
                except (subprocess.SubprocessError, OSError) as error:
                    write_json(file, {"model": name, "failed": "process", "why": type(error).__name__})
        row = json.loads(file.read_text())
        if options.time and "latency" not in row and "lowered_sqnr_db" in row:
            row["latency"] = measured(name, folder, options.budget)
            write_json(file, row)
        rows.append(row)
        share = row.get("int8_mac_share")
        print(f"{name}: int8 {share}, failed {row['failed']}: {row['why']}", flush=True)
    REFERENCE.mkdir(parents=True, exist_ok=True)
    about = {"measured_at": now(), "environment": environment(), "side": SIDE, "classes": CLASSES, "models": rows}
    write_json(REFERENCE / "zoo.json", about)
    (REFERENCE / "table.md").write_text(table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
