"""What bias correction gains: drop and SQNR of PTQ with and without it, per channel and per tensor, on all test images.

    uv run python tests/benchmarks/bias_correction.py --weights FILE --root FOLDER

A ResNet-18 for CIFAR-10 with these weights; the quantized graph is simulated by torch, nothing is compiled. The record
goes to results/reference/bias_correction.json.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raq.environment import environment
from raq.experiment.ptq import Calibration
from raq.experiment.schema import Data
from raq.model.dataset import Dataset, load_dataset
from raq.model.evaluation import logits
from raq.model.parity import sqnr_db
from raq.model.zoo import build_model, load_state, load_weights
from raq.quantize.bias import correct_biases
from raq.quantize.calibration import calibration_batch, calibration_sample
from raq.quantize.ptq import calibrate, prepare, simulated
from raq.statistics.proportions import paired_drop, same_accuracy_p
from raq.store.files import now, write_json

REFERENCE = Path(__file__).parents[2] / "results" / "reference"
CORRECTED_BY = 128


def answers(network: Callable[..., Any], dataset: Dataset) -> Any:
    """The logits for all test images, float32 [N, 10]."""
    return logits(network, dataset, np.arange(dataset.size("test")))


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--root", required=True)
    parser.add_argument("--seeds", type=int, default=1)
    given = parser.parse_args()
    dataset = load_dataset(Data(name="cifar10", root=given.root))
    network = build_model("resnet18-cifar", 10)
    load_state(network, load_weights(given.weights), "resnet18-cifar", str(given.weights))
    network.eval()
    truth = dataset.labels("test")
    fp32 = answers(network, dataset)
    right = fp32.argmax(1) == truth
    rows = []
    for per_channel in (True, False):
        for seed in range(given.seeds):
            settings = Calibration()
            example = calibration_batch(dataset, np.arange(2))[0]
            prepared = prepare(network, example, "x86", settings, reduce_range=False, per_channel=per_channel)
            calibrate(prepared, dataset, settings, seed)
            places = calibration_sample(dataset, settings.size, seed)[:CORRECTED_BY]
            for corrected in (False, True):
                with simulated(prepared) as as_integers:
                    if corrected:
                        correct_biases(as_integers, calibration_batch(dataset, places))
                    found = answers(as_integers, dataset)
                own = found.argmax(1) == truth
                drop, interval = paired_drop(right, own)
                rows.append(
                    {
                        "per_channel": per_channel, "seed": seed, "bias_correction": corrected,
                        "top1": float(own.mean()), "drop": drop, "drop_interval": list(interval),
                        "same_accuracy_p": same_accuracy_p(right, own), "sqnr_db": sqnr_db(fp32, found),
                        "changed": int((found.argmax(1) != fp32.argmax(1)).sum()),
                    }
                )  # fmt: skip
                print(rows[-1], flush=True)
    record = {
        "measured_at": now(), "environment": environment(), "model": "resnet18-cifar", "test_images": len(truth),
        "fp32_top1": float(right.mean()), "torch": torch.__version__, "rows": rows,
    }  # fmt: skip
    write_json(REFERENCE / "bias_correction.json", record)


if __name__ == "__main__":
    main()
