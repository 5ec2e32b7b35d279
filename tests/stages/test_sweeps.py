"""The sweeps of the tiny experiment on this machine alone, without Ray: their trials, tables and choices."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from one_machine import Machine, shown
from workplace import make_workplace

from raq.cluster.resources import trials_of
from raq.errors import StageError, UserError
from raq.model.checkpoints import read_result
from raq.model.evaluation import predict
from raq.plan.prepare import prepare
from raq.plan.requirements import check_results
from raq.quantize.distillation import distilled
from raq.report.sweep import print_layers, print_search
from raq.stages.call import trials_folder
from raq.stages.inputs import read_dataset
from raq.stages.qat import trained_graph
from raq.stages.qat_sweep import call_of, record_of

SWEEP = """
sweep:
  qat: {lr: {loguniform: [1e-4, 1e-1]}, distillation: [0.0, 0.5]}
  trials: 3
  layers: {candidates: 4}
"""


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory, own_cache: Path):
    place = make_workplace(tmp_path_factory.mktemp("alone"), own_cache)
    place.experiment.write_text(place.experiment.read_text() + SWEEP)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place.folder)
        found = Machine(place, "data.validation_fraction=0.2", "train.epochs=2", "qat.epochs=2")
        found.do("train")
        yield found


@pytest.mark.slow  # test_sweep_on_ray.py does such a search through Tune
def test_a_search_for_a_training(machine: Machine) -> None:
    """Three trainings, the first as written; the chosen one is what the stage qat converts; extended, one more runs."""
    found = machine.do("sweep/qat")
    configs = [trial["config"] for trial in found["trials"]]
    assert configs[0] == {"distillation": 0.0, "lr": 0.0005}
    assert [trial["state"] for trial in found["trials"]].count("finished") >= 1
    plan = machine.plan()
    call = machine.call(plan, "sweep/qat")
    folder = machine.folder(plan["sweep/qat"])
    chosen = found["choice"]["number"]
    kept = torch.load(folder / "training.pt", weights_only=True)
    trial = json.loads(record_of(call_of(call, configs[chosen])).read_text())
    assert kept["history"] == trial["history"]
    assert max(found["trials"][chosen]["curve"]) == found["choice"]["top1"]
    assert len(list(trials_folder(call).glob("*.pt"))) == 1, "the chosen one alone keeps its weights"
    table = pd.read_csv(folder / "trials.csv")
    assert list(table["config/lr"]) == [config["lr"] for config in configs]
    assert list(table["state"]) == [trial["state"] for trial in found["trials"]]
    converted = machine.do("qat")
    assert converted["config"]["lr"] == configs[chosen]["lr"]
    assert converted["history"] == trial["history"]
    before = {path: path.stat().st_mtime_ns for path in trials_folder(call).glob("*.npy")}
    more = machine.do("sweep/qat", "sweep.trials=4")
    assert [t["config"] for t in more["trials"]][:3] == configs
    after = {path: path.stat().st_mtime_ns for path in trials_folder(call).glob("*.npy")}
    assert {path: time for path, time in after.items() if path in before} == before, "nothing is trained twice"
    text = shown(print_search, found, 100)
    assert "3 trainings on 102 validation images (random search" in text
    assert "what mattered" in text


LAYERS = {"0", "3", "8"}


def mixture_with_a_layer(found: dict) -> tuple[str, dict]:
    """The first chosen configuration that leaves a layer in float, not only pooling; and its candidate's name."""
    number, chosen = next(
        (n, m) for n, m in enumerate(found["choice"]["mixtures"], 1) if LAYERS & {*m["layers"].split()}
    )
    return f"mixed-{number}", chosen


def test_layers_left_in_float(machine: Machine) -> None:
    """Each layer alone and each left out; the mixtures are what the switched program says when really quantized."""
    found = machine.do("sweep/layers")
    assert [row["layer"] for row in found["sensitivity"]] == ["0", "3", "adaptive_avg_pool2d", "flatten", "8"]
    assert [row["layer"] for row in found["sensitivity"] if row["mac_share"] > 0] == ["0", "3", "8"]
    assert sum(row["mac_share"] for row in found["sensitivity"]) == pytest.approx(1)
    assert len(found["choice"]["mixtures"]) == 4
    by_config = {(t["config"]["mode"], t["config"]["layers"]): t for t in found["trials"]}
    assert by_config["only", "3"]["noise"] < by_config["without", ""]["noise"]
    name, mixture = mixture_with_a_layer(found)
    converted = machine.do(name)
    assert converted["float_layers"] == mixture["layers"].split()
    lowered = machine.do(f"lower/{name}")
    audit = {layer["name"]: layer for layer in lowered["audit"]["layers"]}
    assert {n for n, layer in audit.items() if not layer["int8"]} == LAYERS & set(converted["float_layers"])
    total = sum(layer["macs"] for layer in audit.values())
    floats = sum(audit[n]["macs"] for n in LAYERS & set(converted["float_layers"]))
    assert lowered["int8_mac_share"] == pytest.approx(1 - floats / total)
    plan, required = machine.plan(), prepare(machine.place.experiment, ["require.int8_mac_share=1.0"])
    check_results(plan[f"lower/{name}"], lowered, required.experiment.require)
    simulated = next(row for row in converted["parity"] if row["step"] == "simulated")
    assert simulated["top1"] == pytest.approx(mixture["top1"], abs=0.05)
    text = shown(print_layers, found, 100)
    assert "mixed-2: drop" in text


def test_a_layer_that_is_float_unasked_is_no_mixture(machine: Machine) -> None:
    name, _ = mixture_with_a_layer(machine.do("sweep/layers"))
    machine.do(name)  # whatever ran before
    lowered = {**machine.do(f"lower/{name}"), "float_by_choice": []}
    experiment = prepare(machine.place.experiment, ["require.int8_mac_share=1.0"]).experiment
    with pytest.raises(StageError, match=r"not quantized: .* required is 1; in float"):
        check_results(machine.plan()[f"lower/{name}"], lowered, experiment.require)


def test_distillation_follows_the_teacher() -> None:
    """With the whole loss from FP32's answers, labels do not count; its first step's loss is that divergence."""
    teacher = torch.nn.Linear(4, 3)
    images, logits = torch.randn(5, 4), torch.randn(5, 3)
    loss = distilled(teacher, 0.25, 2.0)((images,), logits, torch.ones(5))
    wanted, own = (torch.softmax(x / 2, 1) for x in (teacher(images), logits))
    divergence = (wanted * (wanted / own).log()).sum(1) * 4
    assert torch.allclose(loss, 0.75 + 0.25 * divergence, atol=1e-5)
    assert torch.allclose(
        distilled(teacher, 1.0, 2.0)((images,), teacher(images), torch.ones(5)), torch.zeros(5), atol=1e-5
    )


def test_distillation_of_what_is_no_class_is_the_squared_distance() -> None:
    """Of one number there is no softmax: it would be 1 whatever it is."""
    teacher, rows = torch.nn.Linear(4, 1), torch.randn(5, 4)
    loss = distilled(teacher, 1.0, None)((rows,), torch.zeros(5, 1), torch.ones(5))
    assert torch.allclose(loss, teacher(rows)[:, 0] ** 2)


def test_how_many_trials(machine: Machine) -> None:
    assert trials_of(machine.plan()["sweep/qat"]) == 3
    assert trials_of(machine.plan("sweep.search=grid", "sweep.trials=null", "sweep.qat.lr=[0.01]")["sweep/qat"]) == 3


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("sweep.qat.lr={loguniform: [0.1, 0.01]}", "the lowest comes first"),
        ("sweep.qat.lr={loguniform: [0.0, 0.01]}", "loguniform starts above 0"),
        ("sweep.qat.lr={uniform: [0.1, 1.0], loguniform: [0.1, 1.0]}", "a range is one of"),
        ("sweep.qat.lr=[-1.0]", "sweep.qat.lr has -1.0; it should be greater than 0"),
        ("sweep.qat.lr=[0.1, 0.1]", "names a value twice"),
        ("ptq.backend=xnnpack", "which the backend xnnpack does not do yet"),
        ("sweep.qat.epoch=[1]", "unknown key"),
        ("sweep.qat.schedule=[linear]", "sweep.qat.schedule has 'linear'"),
        ("sweep.search=grid", "grid takes lists of values, and qat.lr is a range"),
        ("qat=null", "sweep.qat is of the candidate qat, and qat is null"),
        ("ptq=null", "sweep.layers is of the candidate ptq, and ptq is null"),
        ("sweep.trials=1", "sweep.trials is 1; it should be greater than or equal to 2"),
        ("sweep.select.then=speed", "sweep.select.then is 'speed'"),
    ],
)
def test_what_cannot_be_searched(machine: Machine, override: str, said: str) -> None:
    with pytest.raises(UserError) as raised:
        machine.plan(override)
    assert said in str(raised.value)


@pytest.mark.slow
def test_what_a_trial_predicted_is_what_its_kept_weights_predict(machine: Machine) -> None:
    found = machine.do("sweep/qat")
    call = machine.call(machine.plan(), "sweep/qat")
    trial = call_of(call, found["trials"][found["choice"]["number"]]["config"])
    kept = read_result(machine.folder(machine.plan()["sweep/qat"]))
    dataset = read_dataset(trial)
    right = predict(trained_graph(trial, kept), dataset, split="validation") == dataset.validation_labels
    assert np.array_equal(np.load(record_of(trial).with_suffix(".npy")), right)
    assert right.mean() == found["choice"]["top1"]
