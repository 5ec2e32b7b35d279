"""Odd data are told before a run."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import raq
from raq.errors import UserError
from raq.experiment.schema import Data, Experiment
from raq.model import dataset as dataset_module
from raq.model.checks import data_notes
from raq.model.dataset import load_dataset
from raq.model.images import ImageDataset, Images
from raq.plan.facts import DataFound
from raq.plan.fitting import fit_to_data

MSE = {"name": "x", "metric": "mse", "model": {"name": "a:b"}, "require": {"max_drop": 0.1}}


@pytest.fixture
def images() -> ImageDataset:
    draws = np.random.default_rng(0)
    pixels, labels = draws.integers(0, 255, (40, 3, 4, 4)).astype(np.uint8), np.arange(40) % 4
    train, test = np.arange(30), np.arange(30, 40)
    nothing = np.arange(0)
    return ImageDataset(
        Images(pixels, train), labels[train], Images(pixels, nothing), labels[nothing], Images(pixels, test),
        labels[test], 4, (0.5,) * 3, (0.5,) * 3, "d", "here",
    )  # fmt: skip


def test_nothing_is_odd_about_good_images(images) -> None:
    assert data_notes(images) == []


def test_labels_that_begin_at_one_leave_a_class_empty(images) -> None:
    (note,) = data_notes(replace(images, train_labels=images.train_labels + 1, classes=5))
    assert note.startswith("1 class has no training sample (0)")


def test_dead_channels_and_test_images_among_the_training_images(images) -> None:
    images.train_images.stored[:, 1] = 7
    shared = replace(images, test_images=Images(images.train_images.stored, np.array([29, 30, 31, 32])))
    assert data_notes(shared) == [
        "nothing changes in channel 1 of the first 30 images",
        "1 of the test images (25.0%) are training images too: accuracy is flattered",
    ]


def test_test_samples_among_the_training_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    both = {"a": rows, "b": rows[:, :1]}

    def notes(train: Any, test: Any) -> list[str]:
        given = raq.Data(train=raq.Arrays(train, np.zeros(10)), test=raq.Arrays(test, np.zeros(10)))
        monkeypatch.setattr(dataset_module, "call_function", lambda data, folder: given)
        return data_notes(load_dataset(Data(name="own:data", validation_fraction=0.0)))

    assert notes(rows[:10], rows[10:]) == []
    shared = "4 of the test samples (40.0%) are training samples too: accuracy is flattered"
    assert notes(rows[:10], rows[6:16]) == [shared]
    assert notes({k: v[:10] for k, v in both.items()}, {k: v[6:16] for k, v in both.items()}) == [shared]


def test_labels_out_of_range(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.zeros((6, 2), np.float32)
    given = raq.Data(test=raq.Arrays(rows, np.arange(6)), classes=5)
    monkeypatch.setattr("raq.model.dataset.call_function", lambda data, folder: given)
    monkeypatch.setattr("raq.model.dataset.sources_of", lambda name, folder: type("S", (), {"files": {}}))
    with pytest.raises(UserError, match="labels from 0 to 5, and classes is 5"):
        data_notes(load_dataset(Data(name="mine:data"), "."))


def found(**given: object) -> DataFound:
    values = {"train_images": 90, "validation_images": 10, "test_images": 1000, "calibration_images": 90, **given}
    return DataFound(digest="d", source="here", classes=4, inputs=[], **values)


def test_too_few_test_samples_are_told_with_how_many_it_takes() -> None:
    _, notes = fit_to_data(Experiment.model_validate({"name": "x", "qat": None}), found(test_images=100))
    assert notes[0].startswith("100 test samples cannot show that at most 1 points are lost")
    assert "390 would do" in notes[0]


def test_what_the_data_have_no_room_for_is_left_out_or_refused() -> None:
    trained = {"name": "x", "model": {"name": "a:b", "weights": "included"}}
    nothing = found(train_images=0, validation_images=0, calibration_images=50)
    experiment, notes = fit_to_data(Experiment.model_validate(trained), nothing)
    assert (experiment.qat, experiment.ptq.calibration.size) == (None, 50)
    assert notes == (
        "qat is left out: the data have no training split",
        "ptq.calibration.size is 50: all the samples that there are",
    )
    with pytest.raises(UserError, match="qat is asked for, and the data have no training split"):
        fit_to_data(Experiment.model_validate({**trained, "qat": {}}), nothing)
    with pytest.raises(UserError, match=r"no training split, and model\.weights is null"):
        fit_to_data(Experiment.model_validate({"name": "x"}), nothing)
    with pytest.raises(UserError, match="metric cosine has no loss of its own"):
        fit_to_data(Experiment.model_validate({**MSE, "metric": "cosine"}), found())
    with pytest.raises(UserError, match=r"qat\.augment flips and crops images"):
        fit_to_data(Experiment.model_validate({"name": "x", "qat": {"augment": True}}), found())


def test_margins_in_another_unit_follow_max_drop() -> None:
    experiment, _ = fit_to_data(Experiment.model_validate(MSE), found())
    assert experiment.select.margin.accuracy == pytest.approx(0.03)
    assert (experiment.train.augment, experiment.train.progressive) == (False, ())
    own = {**MSE, "select": {"margin": {"accuracy": 0.2}}}
    assert fit_to_data(Experiment.model_validate(own), found())[0].select.margin.accuracy == 0.2
