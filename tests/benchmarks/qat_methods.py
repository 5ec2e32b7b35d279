"""What quantization-aware training gains over PTQ, from where it starts, on networks that calibration alone hurts.

    uv run python tests/benchmarks/qat_methods.py NAME --root FOLDER --work W [--only TEXT] [--limit N]

NAME and its weights as in ptq_methods.py. Every training goes on where it was ended; rows go to
results/reference/qat_methods/NAME.json. Quantized graphs are simulated by torch, on all test images.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from ptq_methods import NETWORKS, data_of, label_of
from torch import nn
from torchao.quantization.pt2e import disable_observer

from raq.environment import environment
from raq.experiment.metric import Metric
from raq.experiment.ptq import Calibration
from raq.experiment.schema import Data
from raq.experiment.training import Qat
from raq.model.checkpoints import LocalContext, TrainingResult
from raq.model.dataset import Dataset, load_dataset
from raq.model.evaluation import logits
from raq.model.inputs import example_of
from raq.model.loop import seed_everything
from raq.model.metrics import scorer_of
from raq.model.parity import sqnr_db
from raq.model.training import train
from raq.model.zoo import load_state, load_weights
from raq.quantize import qat
from raq.quantize.calibrated import Calibrated, load_calibrated, save_calibrated
from raq.quantize.distillation import distillation_of
from raq.quantize.learned_scales import let_learn, put_learned_scales
from raq.quantize.methods import Methods, Source
from raq.quantize.steps import scale_hooks
from raq.stages.effort import quantize_by_effort
from raq.statistics.proportions import paired_drop, same_accuracy_p
from raq.store.files import now, read_json, write_json
from tests.networks import TOP1

REFERENCE = Path(__file__).parents[2] / "results" / "reference" / "qat_methods"
TRAININGS: dict[str, dict[str, Any]] = {
    "start: fp32": {"start": "fp32"},
    "start: fp32, distillation: 0.5": {"start": "fp32", "distillation": 0.5},
    "start: ptq": {},
    "start: ptq, weight_lr: 0.005": {"weight_lr": 0.005},
    "start: ptq, distillation: 0": {"distillation": 0.0},
    "start: ptq, distillation: 0.5": {"distillation": 0.5},
    "start: ptq, average: 0": {"average": 0.0},
    "start: ptq, temperature: 1": {"temperature": 1.0},
    "start: ptq, weight_lr: 0.08": {"weight_lr": 0.08},
    "start: ptq, scale_lr: 0": {"scale_lr": 0.0},
    "start: ptq, scale_lr: 0.005": {"scale_lr": 0.005},
}


def trained(network: nn.Module, dataset: Dataset, settings: Qat, start: Path, folder: Path) -> tuple[Any, float]:
    """The rounding graph after training, from where it stands, and the seconds that its epochs took."""
    example = example_of(dataset.inputs)
    seed_everything(0)
    teacher = network if settings.share_distilled else None
    loss = distillation_of(teacher, settings, classes=True)
    if settings.start == "ptq":
        calibrated: Calibrated = load_calibrated(network, example, start)
        put_learned_scales(calibrated.prepared)
        calibrated.correct()
        let_learn(calibrated.prepared)
        graph = calibrated.prepared
        hooks = scale_hooks(graph, settings, loss)
    else:
        graph = qat.prepare_qat(network, example, "x86", reduce_range=False)
        hooks = qat.qat_hooks(graph, settings, loss)
        network.eval()
    context = LocalContext(folder, progress=lambda m: print(m["epoch_done"], flush=True) if "epoch_done" in m else None)
    result: TrainingResult = train(graph, dataset, TOP1, settings, 0, context, hooks)
    graph.load_state_dict(result.state)
    if settings.start == "fp32":
        qat.set_graph_mode(graph, training=False, norms=False)
        graph.apply(disable_observer)
    return graph, sum(row["duration_s"] for row in result.history)


def main() -> None:
    """Quantize, train, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=NETWORKS)
    parser.add_argument("--root")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--only", action="append", help="the name of a training")
    parser.add_argument("--limit", type=int, help="training images")
    parser.add_argument("--epochs", type=int, default=3)
    given = parser.parse_args()
    dataset = data_of(given.name, given.root)
    if given.limit:
        dataset = load_dataset(Data(name="cifar10", root=given.root, train_limit=given.limit))
    network = NETWORKS[given.name][0]()
    weights = given.weights or (given.work / given.name).with_suffix(".pt")
    load_state(network, load_weights(weights), given.name, str(weights))
    network.eval()
    truth, everything = dataset.labels("test"), np.arange(dataset.size("test"))
    wanted = logits(network, dataset, everything)
    fp32 = wanted.argmax(1) == truth
    folder = given.work / f"qat-{given.name}-{given.limit or 'all'}-{given.epochs}"
    folder.mkdir(parents=True, exist_ok=True)
    start, record = folder / "calibrated.pt", folder / "rows.json"
    rows: list[dict[str, Any]] = read_json(record)["rows"] if record.is_file() else []

    def row(step: str, graph: Any, seconds: float) -> None:
        outputs = logits(graph, dataset, everything)
        own = outputs.argmax(1) == truth
        np.save(folder / f"{step}.npy".replace(": ", "-"), own)
        drop, interval = paired_drop(fp32, own)
        found = {"step": step, "seconds": seconds, "top1": float(own.mean()), "drop": drop,
                 "drop_interval": list(interval), "same_accuracy_p": same_accuracy_p(fp32, own),
                 "sqnr_db": sqnr_db(wanted, outputs)}  # fmt: skip
        ptq = folder / "ptq best.npy"
        if ptq.is_file() and step.startswith("start"):
            gain, between = paired_drop(own, np.load(ptq))
            found |= {"gain": gain, "gain_interval": list(between), "gain_p": same_accuracy_p(own, np.load(ptq))}
        rows.append(found)
        print(found, flush=True)
        write_json(record, {"rows": rows})

    if not start.is_file():
        from raq.quantize.ptq import simulated

        source = Source(network, example_of(dataset.inputs), dataset, "x86", Calibration(), 0, reduce_range=False)
        begun = time.perf_counter()
        made, _ = quantize_by_effort(
            source, Methods(), "best", scorer_of(Metric(), 10, None), 0.3, lambda said, share: None
        )
        with simulated(made.prepared) as graph:
            row("ptq best", graph, time.perf_counter() - begun)
        save_calibrated(made, source, start)
    done = {one["step"] for one in rows}
    for name, keys in TRAININGS.items():
        if name in done or (given.only and name not in given.only):
            continue
        digits = given.name.startswith("digits")
        settings = Qat.model_validate({"epochs": given.epochs, "augment": not digits, "channels_last": True, **keys})
        row(name, *trained(network, dataset, settings, start, folder / name.replace(": ", "-")))
    REFERENCE.mkdir(parents=True, exist_ok=True)
    write_json(
        REFERENCE / f"{label_of(given.name, weights)}.json",
        {"measured_at": now(), "environment": environment(), "network": label_of(given.name, weights),
         "test_images": len(truth),
         "train_images": dataset.size("train"), "epochs": given.epochs, "fp32_top1": float(fp32.mean()), "rows": rows},
    )  # fmt: skip


if __name__ == "__main__":
    main()
