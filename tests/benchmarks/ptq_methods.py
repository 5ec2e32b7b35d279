"""What each method of PTQ wins back, on networks that calibration alone hurts, and what it takes.

    uv run python tests/benchmarks/ptq_methods.py train NAME --root FOLDER --work W   (again to go on after an end)
    uv run python tests/benchmarks/ptq_methods.py measure NAME --root FOLDER --work W
    uv run python tests/benchmarks/ptq_methods.py ranges NAME --root FOLDER --work W    (then)
    uv run python tests/benchmarks/ptq_methods.py nncf NAME --root FOLDER --work W      (then; uv sync --extra nncf)
    uv run python tests/benchmarks/ptq_methods.py latency NAME --root FOLDER --work W   (then; on a quiet machine)

NAME: efficientnet, mobilenet, vit (CIFAR-10, `root`), digits-efficientnet, digits-mobilenet, digits-vit, or resnet18
with --weights FILE. Quantized graphs are simulated by torch, on all test images; nothing is compiled. Records go to
results/reference/ptq_methods/NAME.json.
"""

import argparse
import itertools
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import nn

from raq.artifact import inductor
from raq.artifact.audit import graph_share
from raq.bench.latency import measure as bench
from raq.bench.messages import ContenderSettings
from raq.environment import available_cpus, environment
from raq.experiment.measurement import Bench
from raq.experiment.metric import Metric
from raq.experiment.ptq import Calibration
from raq.experiment.schema import Data
from raq.experiment.training import Train
from raq.model.batch import in_batches
from raq.model.checkpoints import LocalContext
from raq.model.dataset import Dataset, load_dataset
from raq.model.evaluation import logits
from raq.model.inputs import example_of
from raq.model.loop import Task, seed_everything
from raq.model.losses import loss_by_sample
from raq.model.metrics import scorer_of
from raq.model.parity import sqnr_db
from raq.model.training import train
from raq.model.zoo import build_model, load_state, load_weights
from raq.quantize.arithmetic import network_macs
from raq.quantize.calibration import calibration_batch, calibration_sample
from raq.quantize.convert import convert
from raq.quantize.export import graph_of
from raq.quantize.methods import Made, Methods, Source, quantize
from raq.quantize.ptq import simulated
from raq.quantize.quantizers import QUANTIZERS
from raq.stages.effort import quantize_by_effort
from raq.statistics.proportions import paired_drop, same_accuracy_p
from raq.store.files import now, read_json, write_json

NNCF_BATCH = 32
REFERENCE = Path(__file__).parents[2] / "results" / "reference" / "ptq_methods"
ALONE = {
    "calibration alone": Methods(),
    "equalization: folded": Methods(equalization="folded"),
    "equalization: all": Methods(equalization="all"),
    "bias_correction": Methods(bias_correction=True),
    "learned_rounding: 200": Methods(learned_rounding=200),
}
OBSERVERS: dict[str, dict[str, Any]] = {
    "histogram": {}, "minmax": {}, "moving-average": {}, "percentile 99.99": {"observer": "percentile"},
    "percentile 99.9": {"observer": "percentile", "percentile": 99.9}, "entropy": {},
}  # fmt: skip
CNN = {"epochs": 3, "batch_size": 128, "lr": 0.1, "augment": True, "progressive": [0.5, 0.5, 0.75]}
MORE = {"lr": 0.05, "progressive": [], "initialisation": "given"}
DIGITS = {"epochs": 20, "batch_size": 32, "lr": 0.05, "augment": False, "progressive": []}
ADAMW = {"optimizer": "adamw", "lr": 0.001, "weight_decay": 0.05, "progressive": []}


def efficientnet() -> nn.Module:
    """EfficientNet-B0 for small images: its first layer keeps their size."""
    model: Any = torchvision.models.efficientnet_b0(num_classes=10, stochastic_depth_prob=0.0, dropout=0.1)
    model.features[0][0].stride = (1, 1)
    return model  # type: ignore[no-any-return]


def mobilenet() -> nn.Module:
    """MobileNetV3-large for small images."""
    model: Any = torchvision.models.mobilenet_v3_large(num_classes=10)
    model.features[0][0].stride = (1, 1)
    return model  # type: ignore[no-any-return]


def vit() -> Any:
    """A vision transformer of 2.7 million parameters: 6 blocks of 192 with 4 heads, patches of 8 pixels."""
    return torchvision.models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=6, num_heads=4, hidden_dim=192, mlp_dim=768, num_classes=10
    )


NETWORKS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "efficientnet": (efficientnet, CNN),
    "mobilenet": (mobilenet, CNN),
    "vit": (vit, {**ADAMW, "epochs": 3, "batch_size": 128, "augment": True}),
    "digits-efficientnet": (lambda: build_model("torchvision:efficientnet_b0", 10), DIGITS),
    "digits-mobilenet": (lambda: build_model("torchvision:mobilenet_v3_large", 10), DIGITS),
    "digits-vit": (vit, {**ADAMW, "epochs": 20, "batch_size": 32, "augment": False}),
    "resnet18": (lambda: build_model("resnet18-cifar", 10), {}),
}


def data_of(name: str, root: str | None) -> Dataset:
    """All of the data, some held out."""
    if name.startswith("digits"):
        return load_dataset(Data(name="digits", validation_fraction=0.3))
    return load_dataset(Data(name="cifar10", root=root))


def train_it(name: str, dataset: Dataset, folder: Path, more: int | None) -> None:
    """Train from where it stands; the weights go to `folder`.pt. `more`: so many epochs from the weights there are."""
    build, keys = NETWORKS[name]
    seed_everything(0)
    network = build()
    if more:
        load_state(network, load_weights(folder.with_suffix(".pt")), name, str(folder))
        keys, folder = {**keys, **MORE, "epochs": more}, folder.with_name(f"{folder.name}-more")
    settings = Train.model_validate(keys)
    task = Task(loss_by_sample("cross_entropy", settings.label_smoothing, None), scorer_of(Metric(), 10, None))
    context = LocalContext(folder, progress=lambda m: print(m["epoch_done"], flush=True) if "epoch_done" in m else None)
    network.load_state_dict(train(network, dataset, task, settings, 0, context).state)
    torch.save(network.state_dict(), folder.with_suffix(".pt"))


def label_of(name: str, weights: Path) -> str:
    """What a record calls a network: as its weights' file, where that begins with NAME (NAME-more), else NAME."""
    return weights.stem if weights.stem.startswith(f"{name}-") else name


def by_nncf(source: Source, *, smooth_quant: bool, fast_bias_correction: bool) -> Any:
    """The converted graph that NNCF's quantize_pt2e makes with the same quantizer, of the same calibration samples."""
    from nncf import Dataset as CalibrationSet
    from nncf.experimental.torch.fx import quantize_pt2e

    chosen = calibration_sample(source.dataset, source.calibration.size, source.seed)
    batches = [calibration_batch(source.dataset, part)[0] for part in in_batches(chosen, NNCF_BATCH)]
    quantizer = QUANTIZERS[source.backend](qat=False, reduce_range=False, calibration=source.calibration)
    return quantize_pt2e(
        graph_of(source.network, source.example), quantizer, CalibrationSet(batches), subset_size=len(batches),
        smooth_quant=smooth_quant, fast_bias_correction=fast_bias_correction,
    )  # fmt: skip


def nncf(name: str, dataset: Dataset, weights: Path) -> None:
    """Rows for NNCF's methods, into the record that is there."""
    network = NETWORKS[name][0]()
    load_state(network, load_weights(weights), name, str(weights))
    truth, everything = dataset.labels("test"), np.arange(dataset.size("test"))
    right = logits(network.eval(), dataset, everything).argmax(1) == truth
    source = Source(network, example_of(dataset.inputs), dataset, "x86", Calibration(), 0, reduce_range=False)
    rows = []
    for smooth, fast in itertools.product((False, True), (True, False)):
        begun = time.perf_counter()
        graph = by_nncf(source, smooth_quant=smooth, fast_bias_correction=fast)
        seconds = time.perf_counter() - begun
        own = logits(graph, dataset, everything).argmax(1) == truth
        drop, interval = paired_drop(right, own)
        step = f"quantize_pt2e, smooth_quant: {smooth}, fast_bias_correction: {fast}"
        rows.append({"step": step, "seconds": seconds, "top1": float(own.mean()), "drop": drop,
                     "drop_interval": list(interval)})  # fmt: skip
        print(rows[-1], flush=True)
    path = REFERENCE / f"{name}.json"
    kept = {"version": version("nncf"), "measured_at": now(), "environment": environment(), "rows": rows}
    write_json(path, {**read_json(path), "nncf": kept})


def ranges(name: str, dataset: Dataset, weights: Path, seeds: int) -> None:
    """Rows for calibration alone by each observer, of so many samples of the calibration images, into the record."""
    network = NETWORKS[name][0]()
    load_state(network, load_weights(weights), name, str(weights))
    truth, everything = dataset.labels("test"), np.arange(dataset.size("test"))
    right = logits(network.eval(), dataset, everything).argmax(1) == truth
    rows = []
    for (observer, keys), seed in itertools.product(OBSERVERS.items(), range(seeds)):
        calibration = Calibration.model_validate({"observer": observer, **keys})
        source = Source(network, example_of(dataset.inputs), dataset, "x86", calibration, seed, reduce_range=False)
        made = quantize(source, Methods())
        with simulated(made.prepared) as as_integers:
            own = logits(as_integers, dataset, everything).argmax(1) == truth
        drop, interval = paired_drop(right, own)
        rows.append({"observer": observer, "seed": seed, "seconds": made.seconds, "top1": float(own.mean()),
                     "drop": drop, "drop_interval": list(interval),
                     "same_accuracy_p": same_accuracy_p(right, own)})  # fmt: skip
        print(rows[-1], flush=True)
    path = REFERENCE / f"{label_of(name, weights)}.json"
    kept = {"measured_at": now(), "environment": environment(), "rows": rows}
    write_json(path, {**read_json(path), "ranges": kept})


def latency(name: str, weights: Path, dataset: Dataset, work: Path) -> None:
    """What the multiplications of equalization cost: packages with and without them, into the record that is there."""
    network = NETWORKS[name][0]()
    load_state(network, load_weights(weights), name, str(weights))
    source = Source(network.eval(), example_of(dataset.inputs), dataset, "x86", Calibration(), 0, reduce_range=False)
    cpus = available_cpus()
    entrants: list[ContenderSettings] = []
    for step in ("calibration alone", "equalization: folded", "equalization: all"):
        made = quantize(source, ALONE[step])
        multiplied = sum(one.into is None for one in made.equalized)
        path = work / f"{name}-{multiplied}-{len(entrants)}.pt2"
        inductor.lower(convert(made.prepared, source.example), path, {"candidate": step})
        label = f"{step}, {multiplied} multiplications"
        entrants.append(ContenderSettings(label, "inductor", "cpu", str(path), dataset.inputs, len(cpus), "", 10, None))
    protocol = Bench(batch_sizes=(1, 32), budget_s=90.0, precision=0.01)
    found = bench(entrants, protocol, cpus)
    rows = [
        {key: row[key] for key in ("candidate", "batch_size", "p50_ms", "speedup", "speedup_interval", "calm")}
        for row in found["rows"]
    ]
    for row in rows:
        print(row, flush=True)
    path = REFERENCE / f"{label_of(name, weights)}.json"
    kept = {"measured_at": now(), "environment": environment(), "launches": found["launches"], "rows": rows}
    write_json(path, {**read_json(path), "latency": kept})


def measure(name: str, dataset: Dataset, weights: Path, alone: bool) -> dict[str, Any]:
    """A row for calibration, for each method alone if they are wanted, and for the effort best."""
    network = NETWORKS[name][0]()
    load_state(network, load_weights(weights), name, str(weights))
    truth, everything = dataset.labels("test"), np.arange(dataset.size("test"))
    fp32 = logits(network.eval(), dataset, everything)
    right = fp32.argmax(1) == truth
    source = Source(network, example_of(dataset.inputs), dataset, "x86", Calibration(), 0, reduce_range=False)

    def row(step: str, made: Made, **more: Any) -> dict[str, Any]:
        with simulated(made.prepared) as as_integers:
            found = logits(as_integers, dataset, everything)
        own = found.argmax(1) == truth
        drop, interval = paired_drop(right, own)
        return {
            "step": step, "seconds": made.seconds, "top1": float(own.mean()), "drop": drop,
            "drop_interval": list(interval), "same_accuracy_p": same_accuracy_p(right, own),
            "sqnr_db": sqnr_db(fp32, found), "changed": int((found.argmax(1) != fp32.argmax(1)).sum()),
            "equalized": len(made.equalized), "multiplied": sum(one.into is None for one in made.equalized), **more,
        }  # fmt: skip

    rows = []
    for step, methods in list(ALONE.items())[: None if alone else 1]:
        rows.append(row(step, quantize(source, methods)))
        print(rows[-1], flush=True)
    begun = time.perf_counter()
    made, climbed = quantize_by_effort(
        source, Methods(), "best", scorer_of(Metric(), 10, None), 0.3, lambda said, share: None
    )
    took_s, macs = time.perf_counter() - begun, network_macs(network, source.example)
    found = row("effort: best", made, climbed=climbed, seconds=took_s)
    found["graph_int8_mac_share"] = graph_share(convert(made.prepared, source.example), macs)
    rows.append(found)
    print(rows[-1], flush=True)
    return {
        "measured_at": now(), "environment": environment(), "network": label_of(name, weights),
        "settings": NETWORKS[name][1],
        "test_images": len(truth), "fp32_top1": float(right.mean()), "torch": torch.__version__, "rows": rows,
    }  # fmt: skip


def main() -> None:
    """Train or measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("verb", choices=("train", "measure", "ranges", "nncf", "latency"))
    parser.add_argument("name", choices=NETWORKS)
    parser.add_argument("--root")
    parser.add_argument("--work", type=Path, default=Path())
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--more", type=int, help="train so many epochs on, to NAME-more.pt")
    parser.add_argument("--seeds", type=int, default=1, help="ranges: samples of the calibration images")
    parser.add_argument("--without-alone", action="store_true", help="calibration and best, no method alone")
    given = parser.parse_args()
    dataset = data_of(given.name, given.root)
    if given.verb == "train":
        train_it(given.name, dataset, given.work / given.name, given.more)
        return
    REFERENCE.mkdir(parents=True, exist_ok=True)
    weights = given.weights or (given.work / given.name).with_suffix(".pt")
    if given.verb == "ranges":
        ranges(given.name, dataset, weights, given.seeds)
        return
    if given.verb == "nncf":
        nncf(given.name, dataset, weights)
        return
    if given.verb == "latency":
        latency(given.name, weights, dataset, given.work)
        return
    record = REFERENCE / f"{label_of(given.name, weights)}.json"
    write_json(record, measure(given.name, dataset, weights, not given.without_alone))


if __name__ == "__main__":
    main()
