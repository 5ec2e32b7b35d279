"""Metrics against what NumPy, scikit-learn and a known distribution say; losses against torch's own."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import jaccard_score
from torch.nn import functional as F

from raq.errors import StageError, UserError
from raq.experiment.metric import Metric
from raq.model.losses import loss_by_sample
from raq.model.metrics import RESAMPLES, Scorer, scorer_of
from raq.report.claims import drop_claim, images_needed
from raq.statistics.paired import PairedScores, mean_interval, set_interval
from raq.statistics.proportions import drop_interval, proportion_interval
from raq.sweep.answers import Answers


def scores(name: str, output: torch.Tensor, targets: Any, classes: int | None = None):
    scorer = scorer_of(Metric.model_validate(name), classes, None)
    parts = [scorer.of_batch(o, t) for o, t in zip(output.split(7), targets.split(7), strict=True)]
    assert scorer.value_of(parts) == pytest.approx(scorer.together(parts).value)
    return scorer.together(parts)


def test_top5_is_whether_the_class_is_among_the_five_largest() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(50, 12), torch.randint(0, 12, (50,))
    found = scores("top5", logits, targets, 12)
    expected = [int(t) in np.argsort(-row.numpy())[:5] for row, t in zip(logits, targets, strict=True)]
    assert found.values.tolist() == [float(one) for one in expected]
    assert 0.2 < found.value < 0.7


def test_squared_error_and_cosine_are_numpys() -> None:
    torch.manual_seed(0)
    output, targets = torch.randn(20, 3), torch.randn(20, 3)
    assert scores("mse", output, targets).values == pytest.approx(((output - targets) ** 2).mean(1).numpy(), rel=1e-5)
    a, b = output.numpy(), targets.numpy()
    expected = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert scores("cosine", output, targets).values == pytest.approx(expected, rel=1e-5)
    assert scores("mse", torch.ones(4, 1), torch.zeros(4)).value == 1.0  # single numbers have no axis of their own


def test_mean_iou_is_scikit_learns_and_leaves_255_out() -> None:
    torch.manual_seed(0)
    logits, masks = torch.randn(15, 3, 8, 8), torch.randint(0, 3, (15, 8, 8))
    masks[0, :4] = 255
    found = scores("mean_iou", logits, masks, 3)
    known = masks.flatten() != 255
    expected = jaccard_score(masks.flatten()[known], logits.argmax(1).flatten()[known], average="macro")
    assert found.value == pytest.approx(expected)
    assert len(found.values) == 1 + RESAMPLES
    assert 0 < found.values[1:].std() < 0.02


def mean_of_all(outputs: Any, targets: Any) -> float:
    return float(np.mean(outputs[:, 0] * targets))


def test_a_function_of_the_whole_set_is_resampled_with_the_spread_of_the_mean() -> None:
    """Its resampled values spread as the standard error of a mean does."""
    draws = np.random.default_rng(0)
    output, targets = torch.from_numpy(draws.normal(size=(400, 1))), torch.ones(400)
    scorer = Scorer(Metric(function="mine:metric", per="set"), None, mean_of_all)
    found = scorer.together(
        [scorer.of_batch(output[:300], targets[:300]), scorer.of_batch(output[300:], targets[300:])]
    )
    assert found.value == pytest.approx(float(output.mean()))
    assert found.values[1:].std() == pytest.approx(float(output.std()) / 20, rel=0.1)


def test_a_function_of_a_sample() -> None:
    scorer = Scorer(Metric(function="mine:metric"), None, lambda output, target: abs(float(output[0]) - target))
    found = scorer.together([scorer.of_batch(torch.tensor([[1.0], [3.0]]), torch.tensor([0.0, 1.0]))])
    assert found.values.tolist() == [1.0, 2.0]


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(UserError, match="metric top1 is about classes"):
        scorer_of(Metric(), None, None)
    with pytest.raises(StageError, match=r"metric mse cannot be computed of outputs \[2, 3\] and targets \[2, 2\]"):
        Scorer(Metric.model_validate("mse")).of_batch(torch.zeros(2, 3), torch.zeros(2, 2))
    with pytest.raises(StageError, match="targets are no tensor"):
        Scorer(Metric.model_validate("mse")).of_batch(torch.zeros(2, 3), ["a", "b"])


def test_losses_are_torchs_by_sample() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(6, 3, 4, 4), torch.randint(0, 3, (6, 4, 4))
    found = loss_by_sample("cross_entropy", 0.1, None)(logits, targets)
    assert found.shape == (6,)
    assert found.mean() == pytest.approx(float(F.cross_entropy(logits, targets, label_smoothing=0.1)), rel=1e-5)
    numbers = torch.randn(6)
    found = loss_by_sample("mse", 0.0, None)(logits[:, 0, 0, :1], numbers)
    assert found.mean() == pytest.approx(float(F.mse_loss(logits[:, 0, 0, 0], numbers)), rel=1e-5)
    with pytest.raises(UserError, match="nothing says what to train with"):
        loss_by_sample(None, 0.0, None)
    with pytest.raises(StageError, match="the loss mse cannot be computed"):
        loss_by_sample("mse", 0.0, None)(torch.zeros(2, 3), torch.zeros(2, 2))


def test_the_intervals_of_scores_hold_the_truth_as_often_as_they_say() -> None:
    """Of 300 sets of 40 skewed scores, between 90% and 98% of the 95% intervals hold the mean."""
    draws = np.random.default_rng(1)
    held = [low <= 1.0 <= high for low, high in (mean_interval(draws.exponential(1.0, 40)) for _ in range(300))]
    assert 0.90 <= np.mean(held) <= 0.98


def test_drops_are_worse_whichever_way_the_metric_goes() -> None:
    low, high = np.full(30, 0.1) + np.arange(30) / 1000, np.full(30, 0.3) + np.arange(30) / 1000
    for name, worse, better in (("mse", high, low), ("cosine", low, high)):
        metric = Metric.model_validate(name)
        found = Answers(metric, worse, False, 30).worse_than(Answers(metric, better, False, 30))
        assert found is not None
        assert found.value == pytest.approx(0.2)
        assert found.interval()[0] <= 0.2 <= found.interval()[1]
        assert found.interval()[1] - found.interval()[0] < 1e-9  # every sample loses the same
    points = Metric.model_validate("mean_iou")
    one, other = (Answers(points, np.array([value, *([value] * 10)]), True, 30) for value in (0.5, 0.6))
    assert one.worse_than(other).value == pytest.approx(10.0)
    assert one.worse_than(Answers(Metric(), np.zeros((2, 11)), False, 11)) is None


def test_scores_of_0_and_1_have_the_interval_of_answers() -> None:
    """Equal ones are no proof: 30 samples that agree leave what right and wrong answers leave."""
    ones = np.ones(30)
    metric = Metric.model_validate("top5")
    same = Answers(metric, ones, False, 30).worse_than(Answers(metric, ones, False, 30))
    assert same is not None
    assert same.interval()[1] == pytest.approx(drop_interval(0, 0, 30)[1])
    assert Answers(metric, ones, False, 30).interval() == proportion_interval(30, 30)
    own = Metric(function="mine:wrong", greater_is_better=False)
    worse = np.array([1.0, 1.0, *np.zeros(28)])
    lost = Answers(own, worse, False, 30).worse_than(Answers(own, np.zeros(30), False, 30))
    assert lost is not None
    assert lost.value == pytest.approx(2 / 30)
    assert lost.interval()[1] == pytest.approx(drop_interval(2, 0, 30)[1] / 100)


def test_a_set_of_few_samples_has_a_wide_interval_and_one_has_none() -> None:
    values = np.random.default_rng(0).normal(0, 1, 1001)
    assert set_interval(values, 1) == (-np.inf, np.inf)
    few, many = (set_interval(values, count) for count in (3, 3000))
    assert few[1] - few[0] > 2.5 * (many[1] - many[0])


def test_sets_on_which_a_metric_is_undefined_are_left_out_unless_they_are_many() -> None:
    scorer = Scorer(Metric(function="mine:metric", per="set"), None, lambda outputs, targets: 1.0 / int(targets.sum()))
    found = scorer.together([scorer.of_batch(torch.zeros(40, 1), torch.tensor([1] * 5 + [0] * 35))])
    assert 0 < np.isnan(found.values).sum() < 50
    with pytest.raises(StageError, match="undefined on more than 20% of sets"):
        scorer.together([scorer.of_batch(torch.zeros(40, 1), torch.tensor([1] + [0] * 39))])


def test_targets_of_a_column_and_masks_that_no_class_has() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(9, 12), torch.randint(0, 12, (9,))
    assert scores("top5", logits, targets[:, None], 12).value == scores("top5", logits, targets, 12).value
    with pytest.raises(StageError, match="different shapes"):
        Scorer(Metric.model_validate("mse")).of_batch(torch.zeros(2, 3, 4), torch.zeros(2, 4, 3))
    masks, output = torch.randint(0, 3, (2, 4, 4)), torch.randn(2, 3, 4, 4)
    masks[0, 0] = 255
    loss = loss_by_sample("cross_entropy", 0.0, None)(output, masks)
    known = F.cross_entropy(output[1:], masks[1:])
    assert loss[1] == pytest.approx(float(known), rel=1e-5)
    assert torch.isfinite(loss).all()


def test_what_would_settle_a_claim_resamples_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty steps of bisection ask for the same interval of the same differences; four times the samples halve it."""
    calls = []

    def counted(values: np.ndarray, confidence: float) -> tuple[float, float]:
        calls.append(confidence)
        return mean_interval(values, confidence)

    monkeypatch.setattr("raq.statistics.paired.mean_interval", counted)
    paired = PairedScores(np.random.default_rng(0).normal(0.01, 0.1, 200))
    claim = drop_claim("x loses at most 0.02", paired, 0.02, 0.95)
    assert claim.holds is None
    assert "test images would decide it" in images_needed(claim)
    assert calls == [0.95]
    (low, high), (lower, higher) = paired.interval(), paired.more(4).interval()
    assert higher - lower == pytest.approx((high - low) / 2)
