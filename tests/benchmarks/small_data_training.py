"""What each piece of the recipe `fast` does for a network with little batch norm on small data: all, and all but one.

    uv run python tests/benchmarks/small_data_training.py [--seeds 5]

Five convolutions of odd widths, one batch norm, a depthwise layer and a concatenation, 5 epochs of the digits, all 359
test images; and what PTQ and QAT, by their defaults, lose of the first, simulated by torch. The record goes to
results/reference/small_data_training.json.
"""

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from qat_methods import trained
from torch import nn

from raq.environment import environment
from raq.experiment.ptq import Calibration
from raq.experiment.schema import Data
from raq.experiment.training import Qat, Train
from raq.model.checkpoints import LocalContext
from raq.model.dataset import Dataset, load_dataset
from raq.model.evaluation import logits
from raq.model.inputs import example_of
from raq.model.loop import seed_everything
from raq.model.training import train
from raq.quantize.calibrated import save_calibrated
from raq.quantize.methods import Methods, Source, quantize
from raq.quantize.ptq import simulated
from raq.statistics.proportions import paired_drop, same_accuracy_p
from raq.store.files import now, write_json
from tests.networks import TOP1, Odd

REFERENCE = Path(__file__).parents[2] / "results" / "reference"
OTHERWISE: dict[str, dict[str, Any]] = {
    "defaults": {},
    "initialisation: given": {"initialisation": "given"},
    "batch_norm_samples: 0": {"batch_norm_samples": 0},
    "batch_size: 128": {"batch_size": 128},
    "progressive: [0.5, 0.75, 1]": {"progressive": [0.5, 0.75, 1.0]},
    "augment: true": {"augment": True},
    "all five": {
        "initialisation": "given", "batch_norm_samples": 0, "batch_size": 128, "progressive": [0.5, 0.75, 1.0],
        "augment": True,
    },
}  # fmt: skip


def quantized(network: nn.Module, dataset: Dataset, seed: int) -> list[dict[str, Any]]:
    """What PTQ and QAT by their defaults lose, in points, of this network on all test images."""
    truth, everything = dataset.labels("test"), np.arange(dataset.size("test"))
    right = logits(network, dataset, everything).argmax(1) == truth
    source = Source(network, example_of(dataset.inputs), dataset, "x86", Calibration(), seed, reduce_range=False)
    rows = []

    def row(step: str, graph: Any) -> None:
        own = logits(graph, dataset, everything).argmax(1) == truth
        drop, interval = paired_drop(right, own)
        rows.append(
            {"seed": seed, "step": step, "fp32_top1": float(right.mean()), "top1": float(own.mean()), "drop": drop,
             "drop_interval": list(interval), "same_accuracy_p": same_accuracy_p(right, own)}
        )  # fmt: skip
        print(rows[-1], flush=True)

    made = quantize(source, Methods())
    with simulated(made.prepared) as graph:
        row("ptq", graph)
    with tempfile.TemporaryDirectory() as folder:
        save_calibrated(made, source, Path(folder) / "calibrated.pt")
        asked = Qat().for_samples(dataset.size("train"), digits=True)
        row("qat", trained(network, dataset, asked, Path(folder) / "calibrated.pt", Path(folder))[0])
    return rows


def main() -> None:
    """Train, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    given = parser.parse_args()
    dataset, rows, of_quantized = load_dataset(Data(name="digits")), [], []
    truth = dataset.labels("test")
    for name, keys in OTHERWISE.items():
        found = []
        for seed in range(given.seeds):
            settings = Train.model_validate({"epochs": 5, **keys}).for_samples(dataset.size("train"), digits=True)
            seed_everything(seed)
            network = Odd()
            with tempfile.TemporaryDirectory() as folder:
                result = train(network, dataset, TOP1, settings, seed, LocalContext(Path(folder)))
            network.load_state_dict(result.state)
            answers = logits(network.eval(), dataset, np.arange(len(truth))).argmax(1)
            found.append(float((answers == truth).mean()))
            if name == "defaults":
                of_quantized += quantized(network, dataset, seed)
        rows.append({"otherwise": name, "top1": found, "median": statistics.median(found)})
        print(rows[-1], flush=True)
    write_json(
        REFERENCE / "small_data_training.json",
        {"measured_at": now(), "environment": environment(), "test_images": len(truth), "rows": rows,
         "quantized": of_quantized},
    )  # fmt: skip


if __name__ == "__main__":
    main()
