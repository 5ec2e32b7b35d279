"""The ladder of `ptq.effort`: what is kept is nearer to FP32, it ends where that is enough, and records say all."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raq.experiment.metric import Metric
from raq.experiment.ptq import Calibration, Ptq
from raq.experiment.schema import Data, Experiment
from raq.model.dataset import load_dataset
from raq.model.inputs import example_of
from raq.model.metrics import scorer_of
from raq.quantize.calibrated import load_calibrated, save_calibrated
from raq.quantize.calibration import calibration_sample
from raq.quantize.methods import Methods, Source, learning_sample, quantize
from raq.quantize.ptq import simulated
from raq.quantize.ranges import is_weight_observer, observer_nodes
from raq.report.methods import climbed_in_words, methods_in_words
from raq.stages import effort
from raq.stages.effort import Judge, Judgement, quantize_by_effort
from tests.networks import TOP1


class Gated(nn.Module):
    """Channels a thousandfold apart behind a SiLU, before a depthwise convolution that makes them count alike."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.depthwise = nn.Conv2d(3, 8, 3, 2), nn.Conv2d(8, 8, 3, 2, groups=8)
        self.head = nn.Linear(8, 10)
        spread = torch.logspace(-2, 1, 8).view(-1, 1, 1, 1)
        with torch.no_grad():
            self.first.weight.mul_(spread)
            self.depthwise.weight.div_(spread)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.depthwise(F.silu(self.first(x)))).mean((2, 3)))


def source(digits: Any) -> Source:
    example = example_of(digits.inputs)
    return Source(Gated().eval(), example, digits, "x86", Calibration(size=32), 0, reduce_range=False)


def climb(given: Source, kind: Any, enough: float = -1000.0, asked: Methods | None = None) -> Any:
    said: list[str] = []
    made, climbed = quantize_by_effort(
        given, asked or Methods(), kind, TOP1.scorer, enough, lambda one, share: said.append(one)
    )
    return made, climbed, said


def test_fast_does_what_is_asked_and_judges_nothing(digits: Any) -> None:
    made, climbed, _ = climb(source(digits), "fast", asked=Methods(bias_correction=True))
    assert climbed is None
    assert made.methods == Methods(bias_correction=True)
    assert made.corrected


def test_classes_are_compared_by_their_probabilities_and_others_by_the_outputs(digits: Any) -> None:
    """What is added to all logits of a sample changes no answer, and no judgement."""
    given = source(digits)
    judge = Judge(given, TOP1.scorer)
    (images,) = next(iter(digits.batches("validation", [judge.chosen], torch.device("cpu")))).inputs
    with torch.no_grad():
        logits = given.network(images)
    assert torch.allclose(torch.from_numpy(judge.outputs), logits.softmax(1), atol=1e-5)
    without = replace(given, dataset=load_dataset(Data(name="digits", train_limit=99, validation_fraction=0)))
    assert Judge(without, TOP1.scorer).compared == "probabilities"
    other = Judge(without, scorer_of(Metric.model_validate("mse"), 10, None))
    (images,) = next(iter(without.dataset.batches("calibration", [other.chosen], torch.device("cpu")))).inputs
    with torch.no_grad():
        assert torch.allclose(torch.from_numpy(other.outputs), given.network(images), rtol=1e-4, atol=1e-4)


class WithoutGradient(Gated):
    """One that changes in place what its gradient needs."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).exp()
        x.add_(1)
        return self.head(torch.relu(self.depthwise(x)).mean((2, 3)))


def test_a_method_that_cannot_be_done_ends_no_ladder(digits: Any) -> None:
    given = replace(source(digits), network=WithoutGradient().eval())
    made, climbed, _ = climb(given, "better")
    rows = {row["step"]: row for row in climbed["rows"]}
    assert made.methods.equalization == "none"
    assert "gradient of the network's outputs cannot be computed" in rows["equalization: all"]["error"]
    assert "sqnr_db" in rows["bias_correction: true"]
    assert "equalization: all could not be done (the gradient" in climbed_in_words(climbed, "points")


def test_what_is_kept_is_nearer_than_what_was_before(digits: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(effort, "LADDER", {"best": (*effort.FREE, {"learned_rounding": 12}, *effort.PAID)})
    given = source(digits)
    made, climbed, said = climb(given, "best")
    rows = climbed["rows"]
    assert [row["step"] for row in rows] == [
        "as asked", "observer: entropy", "observer: moving-average", "equalization: folded", "bias_correction: true",
        "learned_rounding: 12", "equalization: all",
    ]  # fmt: skip
    *_, rounding, paid = rows
    kept = [row["sqnr_db"] for row in rows if row["kept"]]
    assert kept == sorted(kept)
    left = [row["sqnr_db"] for row in rows if not row["kept"]]
    assert all(distance < max(kept) + effort.MIN_GAIN_DB for distance in left)
    assert paid["kept"]
    assert paid["sqnr_db"] > rows[0]["sqnr_db"] + 3, "this network is made for it"
    assert made.methods.learned_rounding == 12 * rounding["kept"], "what was kept before is done with it too"
    assert made.methods.equalization == "all"
    assert any("step 12 of 12" in one for one in said)
    judged = Judge(given, TOP1.scorer).judge(made)
    assert judged.sqnr_db == pytest.approx(max(kept)), "the graph that is given is the one that was judged best"
    assert climbed["split"] == "validation"
    assert climbed["samples"] == digits.size("validation")
    assert climbed["compared"] == "probabilities"
    words = climbed_in_words(climbed, "points")
    assert "equalization: all" in words
    assert "drop" in words
    # the depthwise layer, and the head: its noise falls by 3 dB too, and is a share of all that is left
    assert "multiplications before 2" in (methods_in_words(made.as_record()) or "")  # type: ignore[arg-type]


def test_ranges_are_tried_first_and_the_rest_is_done_with_them(digits: Any) -> None:
    """Where minmax holds outliers, clipping is nearer; the record says which observer it was."""
    torch.manual_seed(0)
    network = Gated().eval()
    with torch.no_grad():
        network.first.weight[0] *= 30  # one channel far beyond the others, at few pixels
        network.first.bias[0] = -float(network.first.weight[0].abs().sum()) * 0.4
    given = replace(source(digits), network=network, calibration=Calibration(size=32, observer="minmax"))
    made, climbed, _ = climb(given, "better")
    rows = {row["step"]: row for row in climbed["rows"]}
    assert [*rows][1:3] == ["observer: entropy", "observer: moving-average"]
    kept = [step for step, row in rows.items() if row["kept"] and step.startswith("observer")]
    assert kept
    assert f"observer: {made.methods.observer}" == kept[-1]
    assert f"ranges by the observer {made.methods.observer}" in (methods_in_words(made.as_record()) or "")  # type: ignore[arg-type]
    asked = replace(given, calibration=Calibration(size=32, observer="entropy"))
    again = climb(asked, "better")[1]["rows"]
    assert "observer: entropy" not in [row["step"] for row in again], "that is how it was asked"
    asked = replace(given, calibration=Calibration(size=32, observer="moving-average"))
    again = climb(asked, "better")[1]["rows"]
    assert [row["step"] for row in again][:3] == ["as asked", "observer: entropy", "equalization: folded"]


def test_what_a_ladder_ended_with_is_kept_with_its_observer(digits: Any, tmp_path: Path) -> None:
    given = source(digits)
    made = quantize(given, Methods(observer="entropy", equalization="folded"))
    other = quantize(given, Methods(equalization="folded"))
    save_calibrated(made, given, tmp_path / "calibrated.pt")
    kept = torch.load(tmp_path / "calibrated.pt", weights_only=True)
    assert kept["calibration"]["observer"] == "entropy"
    again = load_calibrated(given.network, given.example, tmp_path / "calibrated.pt")
    images = torch.rand(8, *given.example.inputs[0].shape[1:])
    with simulated(made.prepared) as one, simulated(again.prepared) as two, simulated(other.prepared) as three:
        assert torch.equal(one(images), two(images))
        assert not torch.equal(one(images), three(images))


def test_without_a_sample_to_learn_from_there_is_no_learning(digits: Any) -> None:
    dataset = load_dataset(Data(name="digits", train_limit=1, test_limit=20, validation_fraction=0.0))
    given = replace(source(digits), dataset=dataset, calibration=Calibration(size=1))
    _, climbed, _ = climb(given, "best")
    errors = {row["step"]: row["error"] for row in climbed["rows"] if "error" in row}
    assert errors == {
        "learned_rounding: 200": "no calibration sample is left to learn rounding from beside those that judge"
    }


def test_it_ends_where_the_drop_is_small_enough(digits: Any) -> None:
    _, climbed, _ = climb(source(digits), "better", enough=100.0)
    assert [row["step"] for row in climbed["rows"]] == ["as asked"]


def test_what_is_asked_already_is_not_tried_again(digits: Any) -> None:
    _, climbed, _ = climb(source(digits), "better", asked=Methods(equalization="all", bias_correction=True))
    steps = [row["step"] for row in climbed["rows"]]
    assert "equalization: all" not in steps[1:]
    assert "bias_correction: true" not in steps


def test_without_validation_samples_outputs_alone_are_compared() -> None:
    digits = load_dataset(Data(name="digits", train_limit=100, test_limit=20, validation_fraction=0.0))
    given = source(digits)
    judge = Judge(given, TOP1.scorer)
    assert (judge.split, len(judge.chosen), judge.calibrating) == ("calibration", 25, 0)
    made, climbed, _ = climb(given, "better")
    assert climbed["rows"][0]["drop"] is None
    assert made.methods.equalization == "all"
    assert "calibrated too" not in climbed_in_words(climbed, "points")


@pytest.mark.parametrize(("samples", "size", "judging", "calibrating"), [(100, 32, 25, 0), (100, 100, 25, 25),
                                                                          (100, 90, 25, 15), (1400, 256, 376, 0),
                                                                          (3, 2, 1, 0)])  # fmt: skip
def test_rounding_is_not_learned_from_what_judges_it(
    samples: int, size: int, judging: int, calibrating: int, digits: Any
) -> None:
    dataset = load_dataset(Data(name="digits", train_limit=samples, test_limit=20, validation_fraction=0.0))
    given = replace(source(digits), dataset=dataset, calibration=Calibration(size=size))
    judge = Judge(given, TOP1.scorer)
    assert (len(judge.chosen), judge.calibrating) == (judging, calibrating)
    learned = learning_sample(judge.kept_apart(given))
    assert not set(learned) & set(judge.chosen)
    assert len(learned) == min(1024, samples - judging)
    calibrated = calibration_sample(dataset, size, given.seed)
    assert len(set(calibrated) & set(judge.chosen)) == calibrating
    assert len(learning_sample(given)) == min(1024, samples), "where nothing judges"


def test_the_record_says_what_judged_and_what_was_learned_from(monkeypatch: pytest.MonkeyPatch, digits: Any) -> None:
    monkeypatch.setattr(effort, "LADDER", {"best": ({"learned_rounding": 12},)})
    dataset = load_dataset(Data(name="digits", train_limit=100, test_limit=20, validation_fraction=0.0))
    given = replace(source(digits), dataset=dataset, calibration=Calibration(size=90))
    made, climbed, _ = climb(given, "best", asked=Methods(learned_rounding=3))
    assert (climbed["samples"], climbed["calibrating"]) == (25, 15)
    assert "25 calibration samples (15 of them calibrated too)" in climbed_in_words(climbed, "points")
    assert made.learned_from == 75
    assert "in 3 steps of 75 samples" in (methods_in_words(made.as_record()) or "")  # type: ignore[arg-type]


def test_what_is_compared_takes_so_much_memory_at_most(digits: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(effort, "MAX_JUDGED_BYTES", 5 * 40 + 1)  # ten numbers a sample
    judge = Judge(source(digits), TOP1.scorer)
    assert (len(judge.chosen), len(judge.outputs)) == (5, 5)


def test_enough_is_the_intervals_upper_end() -> None:
    assert Judgement(20.0, 0.1, [-0.5, 0.3]).is_enough(0.3)
    assert not Judgement(20.0, 0.0, [-0.5, 0.4]).is_enough(0.3)
    assert not Judgement(20.0, -0.8, [-1.7, 0.2]).is_enough(0.3), "a gain by chance"
    assert Judgement(20.0, -0.1, [-0.3, 0.1]).is_enough(0.3)
    assert not Judgement(20.0, None, None).is_enough(0.3)
    assert Judgement(None, None, None).is_enough(0.3)
    assert Judgement(20.2, None, None).is_nearer(Judgement(20.0, None, None))
    assert not Judgement(20.05, None, None).is_nearer(Judgement(20.0, None, None))


def test_what_takes_time_at_every_call_has_to_bring_more(digits: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that are 0.3 dB apart are kept where they are free, and not where they are not."""
    reached = iter(Judgement(20.0 + 0.3 * step, None, None) for step in range(9))
    monkeypatch.setattr(Judge, "judge", lambda self, made: next(reached))
    made, climbed, _ = climb(source(digits), "better")
    assert [(row["step"], row["kept"]) for row in climbed["rows"]] == [
        ("as asked", True), ("observer: entropy", True), ("observer: moving-average", True),
        ("equalization: folded", True), ("bias_correction: true", True), ("equalization: all", False),
    ]  # fmt: skip
    assert made.methods == Methods("folded", bias_correction=True, observer="moving-average")


def test_weights_of_one_scale_a_tensor_are_refused() -> None:
    for keys in ({"backend": "arm"}, {"per_channel": False}, {"backend": "xnnpack"}):
        with pytest.raises(ValueError, match="a scale for each channel"):
            Ptq.model_validate({"effort": "better", **keys})
        with pytest.raises(ValueError, match="a scale for each channel"):
            Ptq.model_validate({"equalization": "folded", **keys})
    with pytest.raises(ValueError, match="of the mode static"):
        Ptq.model_validate({"mode": "dynamic", "learned_rounding": 10})
    tried = {"name": "x", "ptq": {"effort": "best"}, "sweep": {"ptq": {"per_channel": [True, False]}}}
    with pytest.raises(ValueError, match=r"sweep\.ptq\.per_channel tries false"):
        Experiment.model_validate(tried)


def test_less_than_what_is_asked_is_not_tried(digits: Any) -> None:
    asked = Methods(equalization="all", learned_rounding=3)
    _, climbed, _ = climb(source(digits), "best", asked=asked)
    assert [row["step"] for row in climbed["rows"] if not row["step"].startswith("observer")] == [
        "as asked", "bias_correction: true",
    ]  # fmt: skip


def test_ptq_takes_the_graph_that_quantizers_know(digits: Any) -> None:
    """Attention's projections are observed, padding by a word is numbers, and a convolution of one channel has two."""
    attention = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    found = quantize(replace(source(digits), network=Attentive(attention).eval()), Methods())
    weights = [one for _, one in observer_nodes(found.prepared) if is_weight_observer(one)]
    assert len(weights) == 8, "three convolutions, attention's two projections, two linear layers, the head"
    assert any("constant_pad" in str(node.target) for node in found.prepared.graph.nodes)


class Attentive(nn.Module):
    """A convolution padded by a word, one of a single channel, one that makes patches, and attention over these."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.same, self.single = nn.Conv2d(3, 1, 3, padding="same"), nn.Conv2d(1, 3, 3, padding=1)
        self.patches, self.attention, self.head = nn.Conv2d(3, 8, 8, 8), attention, nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(self.single(torch.relu(self.same(x))))
        return self.head(self.attention(x.flatten(2).transpose(1, 2)).mean(1))
