"""Data of any kind: what raq.Data may hold, how it is read, known again by its digest, and refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import raq
from raq.errors import UserError
from raq.experiment.inputs import Axis, InputSpec
from raq.experiment.schema import Data
from raq.model.dataset import Dataset, load_dataset
from raq.model.samples import SampleDataset

CPU = torch.device("cpu")


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Dataset]:
    """A raq.Data as an experiment finds it: what the user's function returns is given."""

    def load(given: Any, **keys: Any) -> Dataset:
        monkeypatch.setattr("raq.model.dataset.call_function", lambda data, folder: given)
        sources = type("Sources", (), {"files": {"mine.py": "0" * 64}})
        monkeypatch.setattr("raq.model.dataset.sources_of", lambda name, folder: sources)
        return load_dataset(Data.model_validate({"name": "mine:data", **keys}), str(tmp_path))

    return load


def rows(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 4)).astype(np.float32)


@pytest.mark.parametrize("classes", ["cat", {"a", "b"}, {"a": 1}, 3.0, 0, -1, True, ["a", "a"], [], ["a", 1]])
def test_classes_that_are_none(classes: Any) -> None:
    with pytest.raises(UserError, match=r"raq\.Data\(classes="):
        raq.Data(test=[1], classes=classes)


def test_classes_by_number_or_by_name() -> None:
    by_number, by_name = raq.Data(test=[1], classes=np.int64(3)), raq.Data(test=[1], classes=("a", "b"))
    assert (by_number.class_count, by_number.class_names) == (3, None)
    assert (by_name.class_count, by_name.class_names) == (2, ["a", "b"])


def test_arrays_that_should_have_been_a_data_set() -> None:
    """What most people write first: a tuple of arrays, which would be two samples."""
    arrays = np.zeros((50, 1, 8, 8), dtype=np.float32), np.zeros(50, dtype=np.int64)
    with pytest.raises(UserError, match=r"a tuple of 2 arrays, which would be 2 samples"):
        raq.Data(test=arrays).splits()


def test_inputs_by_name_targets_and_splits(loaded) -> None:
    train = {"one": rows(100), "two": np.arange(100)}
    test = {"one": rows(20, 1), "two": np.arange(20)}
    given = raq.Data(train=raq.Arrays(train, np.arange(100) % 3), test=raq.Arrays(test, np.arange(20) % 3), classes=3)
    found = loaded(given, validation_fraction=0.1, test_limit=10)
    assert [found.size(split) for split in ("train", "validation", "calibration", "test")] == [90, 10, 90, 10]
    assert [(one.name, one.shape, one.dtype, one.high) for one in found.inputs] == [
        ("one", (4,), "float32", pytest.approx(float(test["one"].max()))), ("two", (), "int64", 19.0),
    ]  # fmt: skip
    (one, two), targets = next(found.batches("test", [np.array([3, 1])], CPU))
    numbers = two.tolist()
    assert torch.equal(one, torch.from_numpy(test["one"][numbers]))
    assert targets.tolist() == [n % 3 for n in numbers]
    assert sorted(found.labels("train").tolist() + found.labels("validation").tolist()) == sorted(np.arange(100) % 3)


class Sentences:
    """Two lists of words, of as many words as their number."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.arange(1, 3 + index % 5), index


def padded(items: list[Any]) -> Any:
    longest = max(len(words) for words, _ in items)
    return torch.stack([torch.nn.functional.pad(w, (0, longest - len(w))) for w, _ in items]), None


def test_samples_of_any_length_need_a_collate_and_an_axis(loaded) -> None:
    with pytest.raises(UserError, match=r"reading samples fails.*equal size") as caught:
        loaded(raq.Data(test=Sentences(10)))
    assert "collate" in caught.value.hint
    axes = {0: {1: ("length", 2, 9)}}
    found = loaded(raq.Data(test=Sentences(10), collate=padded, dynamic_axes=axes))
    assert found.inputs == (InputSpec("input", (6,), "int64", 0.0, 6.0, (Axis(0, "length", 2, 9),)),)
    (words,), _ = next(found.batches("test", [np.array([0, 1])], CPU))
    assert words.tolist() == [[1, 2, 0], [1, 2, 3]]
    with pytest.raises(UserError, match="dynamic_axes names 'words', and inputs are input"):
        loaded(raq.Data(test=Sentences(10), collate=padded, dynamic_axes={"words": {1: "length"}}))


def test_calibration_may_be_inputs_alone_and_nothing_to_train_on(loaded) -> None:
    found = loaded(raq.Data(test=raq.Arrays(rows(20), np.arange(20)), calibration=torch.from_numpy(rows(7))))
    assert [found.size(split) for split in ("train", "validation", "calibration")] == [0, 0, 7]
    (inputs,), targets = next(found.batches("calibration", [np.array([2, 0])], CPU))
    assert torch.equal(inputs, torch.from_numpy(rows(7)[[2, 0]]))
    assert targets is None


class Augmented(Sentences):
    """Reads otherwise every time."""

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.rand(3), index


class Other(Augmented):
    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.rand(3), index + 1


def test_splits_are_read_by_name_whatever_their_order(loaded) -> None:
    one, two = rows(6), rows(6, 1)
    test, train = raq.Arrays({"one": one, "two": two}, np.arange(6)), raq.Arrays({"two": two, "one": one}, np.arange(6))
    found = loaded(raq.Data(test=test, train=train), validation_fraction=0)
    first, second = next(found.batches("train", [np.arange(6)], CPU)).inputs
    assert torch.equal(first, torch.from_numpy(one))
    assert torch.equal(second, torch.from_numpy(two))
    other = loaded(raq.Data(test=test, train=raq.Arrays({"one": one}, np.arange(6))), validation_fraction=0)
    with pytest.raises(UserError, match="a batch has the inputs one, and the test split's has one, two"):
        next(other.batches("train", [np.arange(6)], CPU))


def test_the_digest_is_of_what_counts(loaded) -> None:
    """All of arrays; of others their items, or the targets of those that augmentation changes; or what is given."""
    values = rows(1000)
    first = loaded(raq.Data(test=raq.Arrays(values, np.zeros(1000)))).digest
    assert loaded(raq.Data(test=raq.Arrays(values.copy(), np.zeros(1000)))).digest == first
    values[501, 2] += 1
    assert loaded(raq.Data(test=raq.Arrays(values, np.zeros(1000)))).digest != first
    augmented = loaded(raq.Data(test=Augmented(10))).digest
    assert loaded(raq.Data(test=Augmented(10))).digest == augmented
    assert loaded(raq.Data(test=Other(10))).digest != augmented
    assert loaded(raq.Data(test=Augmented(11))).digest != augmented
    given = {loaded(raq.Data(test=Augmented(10), digest=text)).digest for text in ("a", "a", "b")}
    assert len(given) == 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (raq.Data(test=[]), r"raq\.Data\(test=\.\.\.\) is empty"),
        (raq.Data(test=iter([1])), r"list_iterator, which has no length"),
        (raq.Data(test=[(rows(1)[0].astype(np.float64), 0)]), "'input' is float64, and networks compute in float32"),
        (raq.Data(test=[(rows(1)[0], 0, 1)]), "an item is a tuple of 3"),
        (raq.Data(test=[({"words": "text"}, 0)]), "'words' is a list, not a tensor"),
        (raq.Data(test=[(np.array([np.nan], np.float32), 0)]), "'input' has NaN or infinite numbers"),
    ],
)  # fmt: skip
def test_what_is_refused(loaded, given: raq.Data, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        loaded(given)
    assert caught.value.hint


def test_workers_read_the_same(loaded) -> None:
    found = loaded(raq.Data(test=raq.Arrays(rows(40), np.arange(40))))
    ahead = loaded(raq.Data(test=raq.Arrays(rows(40), np.arange(40))), workers=2)
    assert isinstance(ahead, SampleDataset)
    assert ahead.workers == 2
    order = [np.arange(start, start + 8) for start in range(0, 40, 8)]
    for one, other in zip(found.batches("test", order, CPU), ahead.batches("test", order, CPU), strict=True):
        assert torch.equal(one.inputs[0], other.inputs[0])
        assert torch.equal(one.targets, other.targets)


def test_tables_and_columns(loaded) -> None:
    import pandas as pd

    frame = pd.DataFrame({"a": [1.0, 2.0], "b": [3, 4], "price": [5.0, 6.0], "town": ["x", "y"]})
    table = raq.from_frame(frame, ["a", "b"], "price")
    inputs, target = table[1]
    assert (inputs.tolist(), inputs.dtype, target) == ([2.0, 4.0], np.float32, 6.0)
    with pytest.raises(UserError, match="no column 'c'"):
        raq.from_frame(frame, ["c"], None)
    with pytest.raises(UserError, match="could not convert string to float"):
        raq.from_frame(frame, ["town"], None)
    columns = raq.Columns([{"ids": [1, 2], "label": 1}] * 3, ["ids"], "label")
    assert loaded(raq.Data(test=columns, classes=2)).inputs[0].name == "ids"
