"""What really runs: the share of MACs in oneDNN's int8 kernels, and weights packed anew at every call.

    uv run python tests/benchmarks/executed.py [--work FOLDER]

resnet18-cifar and vit_b_16 as raq lowers them, resnet18-cifar compiled without freezing, resnet50 for any batch size as
raq lowers it and for a batch of one alone. Weights are random. Each in a process of its own; what is there is not made
again. The record goes to results/reference/executed.json.
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
FILE = ROOT / "results" / "reference" / "executed.json"
CASES = {
    "resnet18-cifar": ("resnet18-cifar", 32, "as raq lowers it"),
    "resnet18-cifar, not frozen": ("resnet18-cifar", 32, "not frozen"),
    "vit_b_16": ("torchvision:vit_b_16", 224, "as raq lowers it"),
    "resnet50, any batch size": ("torchvision:resnet50", 224, "as raq lowers it"),
    "resnet50, batch 1 alone": ("torchvision:resnet50", 224, "batch 1 alone"),
}


def one(case: str, folder: Path) -> dict[str, Any]:
    """Quantize and lower one case, and trace it."""
    import math

    import torch

    from raq.artifact import audit, executed, inductor, isolated
    from raq.artifact.generated_code import read_package
    from raq.artifact.sizes import ledger
    from raq.experiment.inputs import image_input
    from raq.experiment.ptq import Calibration
    from raq.model.zoo import build_model
    from raq.quantize import convert, ptq
    from raq.quantize.arithmetic import network_macs
    from raq.quantize.export import export_program

    name, side, how = CASES[case]
    torch.manual_seed(0)
    network = build_model(name, 1000 if side == 224 else 10, None)
    settle(network, side)
    example, path = torch.zeros(2, 3, side, side), folder / f"{case.replace(' ', '-').replace(',', '')}.pt2"
    prepared = ptq.prepare(network, example, "x86", Calibration(observer="minmax"), reduce_range=False)
    with torch.no_grad():
        prepared(torch.randn(4, 3, side, side, generator=torch.Generator().manual_seed(0)))
    program = convert.convert(prepared, example)
    if how == "not frozen":
        with torch.no_grad():
            torch._inductor.aoti_compile_and_package(
                program, package_path=str(path), inductor_configs={"freezing": False}
            )
    else:
        if how == "batch 1 alone":
            program = export_program(program.module(), example, max_batch=1)
        inductor.lower(program, path, {"candidate": "ptq", "input": [3, side, side]})
    code, counted = read_package(path), network_macs(network, example)
    found = audit.audit(program, code, counted)
    sizes = {math.prod(entry.shape) for entry in ledger(code).constants if len(entry.shape) > 1}
    batches = (1,) if how == "batch 1 alone" else executed.TRACED_BATCHES
    setattr(isolated, "TRACED_BATCHES", batches)  # noqa: B010  it is imported there
    with isolated.IsolatedProcess(path, threads=2) as process:
        traces = process.trace((image_input((3, side, side)),), sizes)
    known = [executed.KnownLayer(layer.name, layer.macs) for layer in found.layers]
    reported = executed.summary(traces, counted.total, known).as_record()
    rows = reported.pop("executed_layers")
    return {
        "case": case, "macs": counted.total, "read_int8_mac_share": found.int8_mac_share, **reported,
        "layers": len(rows), "layers_seen_in_int8": sum(row["int8"] for row in rows), "problem": found.problem,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, default=ROOT / "results" / "executed")
    parser.add_argument("--one")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    if options.one:
        print(json.dumps(one(options.one, options.work)))
        return
    rows = []
    for case in CASES:
        command = [sys.executable, __file__, "--one", case, "--work", str(options.work)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stderr[-2000:])
        rows.append(json.loads(done.stdout.strip().splitlines()[-1]))
        print(rows[-1], flush=True)
    write_json(FILE, {"measured_at": now(), "environment": environment(), "cases": rows})


if __name__ == "__main__":
    main()
