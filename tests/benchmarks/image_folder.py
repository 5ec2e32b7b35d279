"""How much memory a folder of 20,000 images takes: to plan with it, to calibrate, and to evaluate on all of it.

    uv run python tests/benchmarks/image_folder.py [--images 20000] [--work FOLDER]

Images are JPEG of 256x256 pixels, each of its own; half are for training and half for testing. Each step has a process
of its own, whose largest resident memory the kernel tells; "torch" is a process that imports torch and no more. Of
that the pages of the process's own (anonymous) are told apart, looked at every 20 ms: the rest are the files of
libraries and images, which processes share and the kernel takes back when it needs room. The record goes to
results/reference/image_folder.json.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from raq.environment import environment
from raq.store.files import now, write_json

FILE = Path(__file__).parents[2] / "results" / "reference" / "image_folder.json"
SIDE, CLASSES, BATCH = 224, 10, 32
STEPS = ("torch", "load and check", "calibrate", "evaluate")


def write_images(root: Path, count: int) -> None:
    """Coloured gradients with noise, so that no two files are the same."""
    from PIL import Image

    rng = np.random.default_rng(0)
    across, down = np.meshgrid(np.arange(256), np.arange(256))
    for number in range(count):
        split, label = ("train", "test")[number % 2], number // 2 % CLASSES
        folder = root / split / f"class-{label}"
        folder.mkdir(parents=True, exist_ok=True)
        slope = rng.uniform(-1, 1, (3, 2, 1, 1))
        pixels = 128 + slope[:, 0] * (across - 128) + slope[:, 1] * (down - 128) + rng.normal(0, 6, (256, 256))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8).transpose(1, 2, 0)).save(folder / f"{number}.jpg")


def own_mb() -> float:
    """Resident anonymous memory of this process."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) / 1e3


class MostOwn(threading.Thread):
    """Looks at `own_mb` all the time, and keeps the most."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most_mb = 0.0
        self.start()

    def run(self) -> None:
        while True:
            self.most_mb = max(self.most_mb, own_mb())
            time.sleep(0.02)


def step(name: str, root: Path) -> dict[str, Any]:
    """What one process does, and the most memory that it held."""
    watched = MostOwn()
    import torch

    from raq.experiment.ptq import Calibration
    from raq.experiment.schema import Data
    from raq.model.checks import data_notes
    from raq.model.dataset import load_dataset
    from raq.model.evaluation import predict
    from raq.quantize.calibration import CalibrationBatches

    started, done = time.perf_counter(), 0
    if name != "torch":
        dataset = load_dataset(Data(name="imagefolder", root=str(root), image_size=SIDE, validation_fraction=0.0))
        done = dataset.size("train") + dataset.size("test")
        if name == "load and check":
            assert not data_notes(dataset)
        elif name == "calibrate":
            done = sum(len(batch[0]) for batch in CalibrationBatches(dataset, Calibration(size=1024), 0))
        else:  # a network that computes next to nothing: what is measured is reading
            torch.manual_seed(0)
            network = torch.nn.Sequential(torch.nn.AvgPool2d(32), torch.nn.Flatten(), torch.nn.Linear(147, CLASSES))
            done = sum(len(predict(network, dataset, batch_size=BATCH, split=split)) for split in ("train", "test"))
    return {
        "images": done,
        "seconds": round(time.perf_counter() - started, 1),
        "most_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000),
        "most_own_mb": round(max(watched.most_mb, own_mb())),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--step")
    options = parser.parse_args()
    if options.step:
        print(json.dumps(step(options.step, options.work)))
        return
    with tempfile.TemporaryDirectory(prefix="raq-images-") as scratch:
        root = options.work or Path(scratch)
        if not (root / "train").is_dir():
            write_images(root, options.images)
        found = {}
        for name in STEPS:
            command = [sys.executable, __file__, "--step", name, "--work", str(root)]
            answer = subprocess.run(command, check=True, capture_output=True, text=True, timeout=3600).stdout
            found[name] = json.loads(answer.splitlines()[-1])
            print(name, found[name], flush=True)
    decoded_gb = round(options.images * 3 * SIDE * SIDE / 1e9, 2)
    record = {"measured_at": now(), "environment": environment(), "images": options.images, "decoded_gb": decoded_gb}
    write_json(FILE, {**record, "steps": found})


if __name__ == "__main__":
    main()
