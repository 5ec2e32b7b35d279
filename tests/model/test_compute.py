"""How steps are computed, and averages of weights: what is measured, what is kept, and that an end in between is no
matter."""

from pathlib import Path

import pytest
import torch
from networks import TOP1
from torch import nn

from raq.experiment.training import LARGE_DATA, Train
from raq.model.averaging import WeightAverage
from raq.model.batch import Batch
from raq.model.checkpoints import LocalContext
from raq.model.compute import Compute, _fastest, choose, ways
from raq.model.loop import seed_everything
from raq.model.training import train

CPU = torch.device("cpu")
WAYS = [Compute(p, layout) for p in ("float32", "bfloat16") for layout in (False, True)]


def settings(**given: object) -> Train:
    return Train.model_validate(
        {"epochs": 4, "batch_size": 64, "lr": 0.05, "augment": False, "progressive": [], **given}
    )


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(256, 10),
    )  # fmt: skip


def fit(digits, folder: Path, context: LocalContext | None = None, **given: object):
    seed_everything(0)
    model = network()
    return model, train(model, digits, TOP1, settings(**given), 0, context or LocalContext(folder))


def test_ways_are_few_where_data_are_small_or_the_settings_say_it() -> None:
    assert ways(settings(), LARGE_DATA - 1, CPU) == WAYS[:1]
    assert ways(settings(), LARGE_DATA, CPU) == WAYS
    assert ways(settings(precision="bfloat16", channels_last=True), 10, CPU) == WAYS[3:]
    assert ways(settings(channels_last=True), LARGE_DATA, CPU) == [WAYS[1], WAYS[3]]
    assert ways(settings(recipe="published"), LARGE_DATA, CPU) == WAYS[:1]


@pytest.mark.parametrize(
    ("seconds", "best"),
    [([1.0, 0.95, 0.92, 0.91], 0), ([1.0, 0.8, 0.75, 0.5], 3), ([1.0, None, 0.5, 0.49], 2), ([1.0, 2.0, 3.0, 4.0], 0)],
)
def test_the_fastest_is_taken_where_it_is_faster_by_a_tenth(seconds: list[float | None], best: int) -> None:
    assert _fastest(WAYS, seconds) == WAYS[best]


class Views(nn.Module):
    """A network that runs in one layout alone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 4, 1), nn.Linear(4 * 64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.last(self.conv(x).view(len(x), -1))
        return found


def test_a_layout_in_which_the_network_does_not_run_is_left_out_and_the_network_left_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Views()
    before = {name: one.clone() for name, one in model.state_dict().items()}
    batch = Batch((torch.randn(8, 3, 8, 8),), torch.zeros(8, dtype=torch.int64))
    context = LocalContext(tmp_path)
    found, row = choose(model, settings(precision="float32"), LARGE_DATA, lambda: batch, context)
    assert found == Compute()
    assert [one["seconds"] is None for one in row["measured_steps"]] == [False, True]
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())
    assert all(one.grad is None for one in model.parameters())


class Remembers(nn.Module):
    """A network that cannot be copied once it has run."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(192, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen: torch.Tensor = self.last(x.flatten(1))
        return self.seen


def test_a_network_that_cannot_be_measured_is_trained_the_plainest_way(tmp_path: Path) -> None:
    model, batch = Remembers(), Batch((torch.randn(8, 3, 8, 8),), None)
    model(*batch.inputs)
    found, row = choose(model, settings(), LARGE_DATA, lambda: batch, LocalContext(tmp_path))
    assert found == Compute()
    assert [one["seconds"] for one in row["measured_steps"]] == [None] * 4


def test_half_precision_and_layout_are_used_and_the_history_says_so(digits, tmp_path: Path) -> None:
    seen: list[tuple[torch.dtype, bool]] = []

    seed_everything(0)
    model = network()
    model[3].register_forward_hook(
        lambda module, given, output: seen.append(
            (output.dtype, output.is_contiguous(memory_format=torch.channels_last))
        )
    )
    asked = settings(precision="bfloat16", channels_last=True, epochs=1, initialisation="given")
    result = train(model, digits, TOP1, asked, 0, LocalContext(tmp_path))
    assert seen[0] == (torch.bfloat16, True)
    assert {dtype for dtype, _ in seen} == {torch.bfloat16, torch.float32}, "evaluation is in float32"
    assert [(row["precision"], row["channels_last"]) for row in result.history] == [("bfloat16", True)]
    assert all(one.dtype is not torch.bfloat16 for one in result.state.values())
    _, plain = fit(digits, tmp_path / "plain", epochs=1, initialisation="given")
    assert abs(plain.history[0]["loss"] - result.history[0]["loss"]) < 0.02


def test_an_average_is_the_recurrence_by_hand_and_is_there_in_evaluation_alone() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    average, expected = WeightAverage(model, 25), model[0].weight.detach().clone()
    for step in range(40):
        with torch.no_grad():
            model[0].weight.add_(torch.randn(2, 2))
        average.step()
        expected += max(1 / 25, 10 / (step + 10)) * (model[0].weight.detach() - expected)
    own = model[0].weight.detach().clone()
    with average.in_place():
        torch.testing.assert_close(model[0].weight.detach(), expected)
    assert torch.equal(model[0].weight, own)


def test_averages_are_what_is_kept_and_less_noisy_than_the_last_weights(digits, tmp_path: Path) -> None:
    """At a constant, large learning rate: that is what they are for."""
    given = {"schedule": "constant", "lr": 0.3, "epochs": 6, "batch_size": 16}
    _, plain = fit(digits, tmp_path / "a", **given)
    _, averaged = fit(digits, tmp_path / "b", average=0.2, **given)
    assert [row["loss"] for row in plain.history] == [row["loss"] for row in averaged.history], "the same training"
    assert averaged.history[-1]["validation"] >= plain.history[-1]["validation"]
    assert any(not torch.equal(plain.state[name], averaged.state[name]) for name in plain.state)


class _Ended(Exception):
    pass


def test_an_interrupted_training_with_all_of_it_ends_as_an_undisturbed_one(digits, tmp_path: Path) -> None:
    class EndsAfterTwo(LocalContext):
        def save(self, metrics, write) -> None:
            super().save(metrics, write)
            if metrics["epoch"] == 1:
                raise _Ended

    given = {"precision": "bfloat16", "channels_last": True, "average": 0.1}
    _, whole = fit(digits, tmp_path / "a", **given)
    with pytest.raises(_Ended):
        fit(digits, tmp_path / "b", EndsAfterTwo(tmp_path / "b"), **given)
    _, resumed = fit(digits, tmp_path / "b", **given)
    assert [row["loss"] for row in resumed.history] == [row["loss"] for row in whole.history]
    assert all(torch.equal(whole.state[name], resumed.state[name]) for name in whole.state)
