"""A sweep of what PTQ does beside calibration: its trials, its choice, and the candidate that is made of it."""

from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from one_machine import Machine, shown
from workplace import make_workplace

from raq.errors import UserError
from raq.experiment.metric import TOP1
from raq.experiment.ptq import Ptq
from raq.experiment.schema import Experiment
from raq.page.trial_plots import calibrations
from raq.quantize.methods import Methods, Source, quantize
from raq.quantize.ptq import simulated
from raq.report.sweep import print_sweep
from raq.stages.call import trials_folder
from raq.stages.chosen import with_config
from raq.stages.inputs import example_input, read_dataset, read_trained_network
from raq.stages.ptq_sweep import all_configs
from raq.stages.trials import read_answers
from raq.store.files import short_digest
from raq.store.settings import PtqSettings
from raq.store.sweep_results import PtqSweepResults, as_read

SWEEP = """
sweep: {ptq: {calibration.size: [32], equalization: [none, folded], learned_rounding: [0, 6], seed: [0]}}
"""
TRIALS = [("none", False, 0), ("none", False, 6), ("folded", False, 0), ("folded", False, 6)]


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory, own_cache: Path):
    place = make_workplace(tmp_path_factory.mktemp("methods"), own_cache)
    place.experiment.write_text(place.experiment.read_text() + SWEEP)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place.folder)
        yield Machine(place, "data.validation_fraction=0.2", "train.epochs=1", "qat=null")


def test_every_method_is_tried_and_the_candidate_is_the_chosen_one(machine: Machine) -> None:
    """A trial's answers are those of the graph that its methods make; the candidate does what the choice says."""
    found = machine.do("sweep/ptq")
    assert found["failed"] == []
    names = ("equalization", "bias_correction", "learned_rounding")
    assert [tuple(t["config"][name] for name in names) for t in found["trials"]] == TRIALS
    assert (found["calibration_images"], found["calibration_passes"]) == (4 * 32, 4)
    call = machine.call(machine.plan(), "sweep/ptq")
    config = found["trials"][3]["config"]
    ptq, dataset = with_config(call.read(PtqSettings).ptq, config), read_dataset(call)
    assert (ptq.equalization, ptq.learned_rounding, ptq.calibration.size) == ("folded", 6, 32)
    source = Source(
        read_trained_network(call), example_input(call), dataset, "x86", ptq.calibration, 0, config["reduce_range"]
    )
    kept = read_answers(call, trials_folder(call) / f"{short_digest(config)}.json")
    assert kept is not None
    batches = dataset.batches("validation", [np.arange(dataset.size("validation"))], torch.device("cpu"))
    images = next(iter(batches)).inputs
    with simulated(quantize(source, Methods("folded", False, 6)).prepared) as graph:
        right = graph(*images).argmax(1).numpy() == dataset.validation_labels
    assert kept.values.tolist() == right.astype(float).tolist()
    chosen = found["choice"]["config"]
    made = machine.do("ptq")["methods"]
    assert {name: made[name] for name in names} == {name: chosen[name] for name in names}
    assert f"equalization: {chosen['equalization']}, bias_correction: false" in found["choice"]["why"]


def test_what_is_shown_tells_the_methods_apart(machine: Machine) -> None:
    found = machine.do("sweep/ptq")
    text = shown(print_sweep, found, 120)
    for equalization, _, steps in TRIALS:
        said = "not" if equalization == "none" else equalization
        assert f"histogram, {said} equalized, {steps} steps learned" in text
    assert "biases" not in text, "all trials do without"
    assert text.count("▸") + text.count("*") == 1
    narrow = shown(print_sweep, found, 80)
    assert "…" not in narrow, "the methods wrap, and every figure is there"
    assert narrow.count("▸") + narrow.count("*") == 1
    lines = calibrations(cast("PtqSweepResults", as_read(found)), TOP1).data
    assert len({line["name"] for line in lines}) == 4


def test_a_sweep_of_calibrations_alone_has_no_keys_more(machine: Machine) -> None:
    """So that its trials, which are named by their keys, are those of before."""
    plan = machine.plan("sweep.ptq.equalization=[]", "sweep.ptq.learned_rounding=[]", "ptq.equalization=all")
    call = machine.call(plan, "sweep/ptq")
    (config,) = all_configs(call)
    assert set(config) == {
        "calibration.size", "calibration.observer", "calibration.percentile", "per_channel", "reduce_range", "seed"
    }  # fmt: skip
    assert with_config(Ptq(equalization="all"), config).equalization == "all"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["sweep.ptq.equalization=[most]"], "sweep.ptq.equalization"),
        (["sweep.ptq.learned_rounding=[-1]"], "sweep.ptq.learned_rounding"),
        (
            ["sweep.ptq.per_channel=[true, false]"],
            "sweep.ptq.per_channel tries false, and equalization takes weights with a scale for each channel: leave",
        ),
        (
            ["ptq.backend=xnnpack"],
            "sweep.ptq.equalization has 'folded'; effort and equalization are of the backend x86",
        ),
        (["ptq.backend=arm"], "sweep.ptq.equalization has 'folded'"),
        (["ptq.mode=dynamic", "sweep.ptq.equalization=[]"], "sweep.ptq and sweep.layers are of the mode static"),
    ],
)
def test_what_cannot_be_tried(machine: Machine, overrides: list[str], said: str) -> None:
    with pytest.raises(UserError) as raised:
        machine.plan(*overrides)
    assert said in str(raised.value)


def test_methods_may_be_tried_for_any_backend_that_has_them() -> None:
    given = {"name": "x", "ptq": {"backend": "arm"}, "sweep": {"ptq": {"bias_correction": [True, False]}}}
    assert Experiment.model_validate(given).sweep is not None
    as_swept = {"ptq": {"per_channel": False}, "sweep": {"ptq": {"per_channel": [True], "equalization": ["all"]}}}
    assert Experiment.model_validate({"name": "x", **as_swept}).sweep is not None
