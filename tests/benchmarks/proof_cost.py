"""What the proof costs a PTQ candidate: its seconds beside all others of the stages that make and evaluate it.

    RAQ_DATA=FOLDER uv run python tests/benchmarks/proof_cost.py experiments/cifar10.yaml --set model.weights=FILE

The stages run one after the other in this process. The proof is the parity chain, the audit, the ledger, and the start
of the fresh process; what it adds is its seconds over those of the same stages without it.
"""

import argparse
import tempfile
import time
from pathlib import Path

from raq.environment import environment
from raq.plan.prepare import prepare
from raq.stages.call import Call
from raq.stages.dispatch import run_stage
from raq.store.files import now, write_json

REFERENCE = Path(__file__).parents[2] / "results" / "reference" / "proof_cost.json"
OF_PTQ = ("train", "ptq", "lower/ptq", "evaluate/ptq")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("experiment", type=Path)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    options = parser.parse_args()
    prepared = prepare(options.experiment, options.overrides)
    cpus = prepared.plan[-1].settings["machine"]["cpus"]
    root, weights = prepared.experiment.data.root, prepared.experiment.model.weights
    import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer  # noqa: F401  imported before the clock starts

    rows: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        places = {name: str(Path(folder) / name.replace("/", "-")) for name in OF_PTQ}
        for stage in [stage for stage in prepared.plan if stage.name in OF_PTQ]:
            inputs = {role: places[name] for role, name in stage.inputs.items()}
            place = places[stage.name]
            call = Call(
                name=stage.name,
                kind=stage.kind,
                settings=stage.settings,
                inputs=inputs,
                folder=place,
                data_root=root,
                weights_file=weights,
                cpus=cpus,
            )
            started = time.perf_counter()
            results = run_stage(call, lambda metrics: None)
            write_json(Path(place) / "record.json", {"results": results})  # stages read those of their inputs
            if stage.name == "train":
                continue
            rows[stage.name] = {"stage_s": time.perf_counter() - started, "proof_s": results["proof_s"]}
            took, proof = rows[stage.name].values()
            print(f"{stage.name}: {took:.1f} s, of which the proof {proof:.1f} s", flush=True)
    whole, proof = (sum(row[key] for row in rows.values()) for key in ("stage_s", "proof_s"))
    added = proof / (whole - proof)
    images = prepared.experiment.parity.images
    print(f"the proof, on {images} images, adds {100 * added:.1f}% to {whole - proof:.1f} s")
    record = {"measured_at": now(), "experiment": prepared.experiment.name, "parity_images": images, "stages": rows}
    write_json(REFERENCE, {**record, "added": added, "environment": environment()})


if __name__ == "__main__":
    main()
