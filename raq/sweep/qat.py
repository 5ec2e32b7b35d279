"""Searching for a training: which are tried, which end early, which is chosen. Neither torch nor ray.

Everything here is a function of the trials before, in their order, and of seeds: a search that is interrupted and
continued comes to the same table, and one that is extended keeps its beginning. A trial's curve is its quality on the
validation images after each epoch: the metric, negated where less is better.
"""

import itertools
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from raq.experiment.sweep import DEFAULT_TRIALS, Config
from raq.experiment.training import Qat
from raq.store.files import digest
from raq.store.settings import QatSearch, QatSweepSettings

Space = Mapping[str, Any]
Curve = Sequence[float]
REDUCTION = 3  # of the trainings that reach a rung, one in so many goes on
EPOCHS = "epochs"  # the key of `qat` that says how long a trial is
DRAWN_FIRST = 10  # trials that Optuna's sampler draws at random before it models anything
SUGGESTION_LAG = (
    4  # a suggestion of Optuna knows the trials that lie at least so many before it, finished or not by the clock
)


def default_config(space: Space, base: Qat) -> Config:
    """The training as written in the experiment: always the first trial, to compare with."""
    written = base.model_dump(mode="json")
    written["distillation"] = base.share_distilled
    return {key: written[key] for key in sorted(space)}


def planned(search: str, space: Space, base: Qat, trials: int | None, seed: int) -> list[Config]:
    """The trials known in advance, in order: all of a grid or random search, Optuna's first draws.

    Fewer than asked for if a space of lists has no more.
    """
    if search == "grid":
        return _grid(space, base)
    count = trials or DEFAULT_TRIALS
    wanted = min(count, DRAWN_FIRST) if search == "optuna" else count
    found = {digest(first): first for first in [default_config(space, base)]}
    for draw in range(50 * wanted):
        if len(found) >= wanted:
            break
        config = _drawn(space, np.random.default_rng([seed, draw]))
        found.setdefault(digest(config), config)
    return list(found.values())


def _grid(space: Space, base: Qat) -> list[Config]:
    keys = sorted(space)
    default = default_config(space, base)
    every = [dict(zip(keys, values, strict=True)) for values in itertools.product(*(space[key] for key in keys))]
    return [default, *(config for config in every if config != default)]


def _drawn(space: Space, rng: np.random.Generator) -> Config:
    config: Config = {}
    for key in sorted(space):
        values = space[key]
        if isinstance(values, list):
            config[key] = values[int(rng.integers(len(values)))]
        else:
            (kind, (low, high)) = next(iter(values.items()))
            drawn = (
                math.exp(rng.uniform(math.log(low), math.log(high))) if kind == "loguniform" else rng.uniform(low, high)
            )
            config[key] = float(f"{min(max(drawn, low), high):.4g}")
    return config


def suggestion(space: Space, tried: Sequence[Config], scores: Sequence[float | None], number: int, seed: int) -> Config:
    """The trial `number`, by Optuna's TPE sampler, from the trials that lie SUGGESTION_LAG before it and further.

    tried, scores: at least those, in order; a score is a trial's best quality, None if it failed.
    Tree-structured Parzen estimator: Bergstra et al. 2011, Algorithms for Hyper-Parameter Optimization.
    """
    study, distributions = _study(
        space, tried[: number - SUGGESTION_LAG + 1], scores[: number - SUGGESTION_LAG + 1], seed + number
    )
    asked = study.ask(distributions).params
    return {key: asked[key] if isinstance(space[key], list) else float(f"{asked[key]:.4g}") for key in sorted(space)}


def importance(space: Space, tried: Sequence[Config], scores: Sequence[float | None]) -> dict[str, float] | None:
    """The share of the scores' variance that each key explains (functional ANOVA by Optuna); None if it cannot tell.

    Hutter et al. 2014, An Efficient Approach for Assessing Hyperparameter Importance. It wants differing scores.
    """
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    known = [score for score in scores if score is not None]
    if len(known) < 4 or len(set(known)) < 2:
        return None
    study, distributions = _study(space, tried, scores, 0)
    try:
        found = get_param_importances(
            study, evaluator=FanovaImportanceEvaluator(seed=0), params=sorted(distributions), normalize=True
        )
    except (ValueError, RuntimeError):
        return None
    return {key: float(value) for key, value in found.items()}


def _study(space: Space, tried: Sequence[Config], scores: Sequence[float | None], seed: int) -> Any:
    """A study of Optuna that has seen these trials, and its distributions."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    distributions: dict[str, Any] = {}
    for key, values in space.items():
        if isinstance(values, list):
            distributions[key] = optuna.distributions.CategoricalDistribution(
                list(dict.fromkeys([*values, *(config[key] for config in tried)]))
            )
        else:
            (kind, (low, high)) = next(iter(values.items()))
            within = [config[key] for config in tried if config[key] is not None]
            distributions[key] = optuna.distributions.FloatDistribution(
                min([low, *within]), max([high, *within]), log=kind == "loguniform"
            )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study = optuna.create_study(
            direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=DRAWN_FIRST)
        )
        for config, score in zip(tried, scores, strict=True):
            fits = all(isinstance(space[key], list) or config[key] is not None for key in space)
            if score is not None and fits:
                study.add_trial(optuna.create_trial(params=config, distributions=distributions, value=score))
    return study, distributions


def rungs(epochs: int) -> list[int]:
    """The epochs after which a training of so many is compared with others: 1, 3, 9, ..., below its last."""
    return [REDUCTION**n for n in range(10) if epochs > REDUCTION**n]


def stopped_after(curves: Sequence[Curve], epochs: Sequence[int]) -> list[int | None]:
    """By trial, the epoch after which it ends early; None: it goes on, for now if that is not known yet.

    curves: by trial, its quality after each epoch so far; epochs: how many it comes to if it is let (of a failed one,
    those that it has). Asynchronous successive halving (Li et al. 2020, A System for Massively Parallel Hyperparameter
    Tuning), but that a trial is compared, at each rung, with the trials before it in their order rather than on the
    clock: the decisions are the same however many run at a time, and those of the first trials stand when more are
    added. A trial goes on if it is in the best third of the trials before it that came to that rung, and itself.
    """
    decided: list[int | None] = []
    for number, curve in enumerate(curves):
        verdict = None
        for rung in rungs(epochs[number]):
            before = [n for n in range(number) if decided[n] is None or (decided[n] or 0) >= rung]
            if len(curve) < rung or any(len(curves[n]) < min(rung, epochs[n]) for n in before):
                break  # it, or one before it, is not that far
            values = [curves[n][rung - 1] for n in before if len(curves[n]) >= rung]
            better = sum(value > curve[rung - 1] for value in values)
            if better > len(values) // REDUCTION:
                verdict = rung
                break
        decided.append(verdict)
    return decided


def best_score(curve: Curve) -> float | None:
    """The highest quality of a curve; None if there is none."""
    return max(curve, default=None)


class Search:
    """A search while it goes: which trials there are, how far each is, which have ended early."""

    def __init__(self, sweep: QatSearch, base: Qat, seed: int) -> None:
        """base: the training as written, which trials change."""
        self.space, self.kind, self.seed = sweep.space, sweep.search, seed
        self.asha = sweep.scheduler == "asha"
        self.base = base
        self.known = planned(self.kind, self.space, base, sweep.trials, seed)
        self.asked = len(self.known) if self.kind != "optuna" else sweep.trials or DEFAULT_TRIALS
        self.configs: list[Config] = []
        self.curves: list[list[float]] = []
        self.failed: dict[int, str] = {}

    @property
    def exhausted(self) -> bool:
        """Whether every trial has been handed out."""
        return len(self.configs) >= self.asked

    @property
    def epochs(self) -> list[int]:
        """By trial, the epochs that it comes to if it is let."""
        return [
            len(self.curves[n]) if n in self.failed else int(config.get(EPOCHS, self.base.epochs))
            for n, config in enumerate(self.configs)
        ]

    def stops(self) -> list[int | None]:
        """By trial, the epoch after which it ends early."""
        return stopped_after(self.curves, self.epochs) if self.asha else [None] * len(self.curves)

    def epochs_trained(self) -> list[int]:
        """By trial, how many of its epochs count: all that it had, or those before it ended early."""
        return [len(curve[:stop]) for curve, stop in zip(self.curves, self.stops(), strict=True)]

    def scores(self) -> list[float | None]:
        """By trial, its highest quality, of the epochs that count."""
        return [
            None if n in self.failed else best_score(self.curves[n][:stop] if stop else self.curves[n])
            for n, stop in enumerate(self.stops())
        ]

    def ask(self) -> int | None:
        """Hand out the next trial, by its number; None if there is none, or if it waits for those before it."""
        number = len(self.configs)
        if self.exhausted:
            return None
        if number < len(self.known):
            config = self.known[number]
        else:
            stops, epochs = self.stops(), self.epochs
            if any(stops[n] is None and len(self.curves[n]) < epochs[n] for n in range(number - SUGGESTION_LAG + 1)):
                return None
            config = suggestion(self.space, self.configs, self.scores(), number, self.seed)
        self.configs.append(config)
        self.curves.append([])
        return number

    def tell(self, number: int, epoch: int, quality: float) -> bool:
        """Take in a trial's quality after an epoch (from 0); whether it goes on."""
        curve = self.curves[number]
        if epoch < len(curve):  # a trial that is tried again reports the same again
            curve[epoch] = quality
        else:
            curve.append(quality)
        return self.stops()[number] is None

    def fail(self, number: int, error: str) -> None:
        """A trial has failed for good."""
        self.failed[number] = error


def pareto_front(scores: Sequence[float | None], costs: Sequence[float]) -> list[bool]:
    """Which trials are on the Pareto front: none has both a higher score and no more cost, or the same for less."""
    return [
        own is not None
        and not any(
            other is not None
            and n != number
            and other >= own
            and costs[n] <= cost
            and (other, -costs[n]) != (own, -cost)
            for n, other in enumerate(scores)
        )
        for number, (own, cost) in enumerate(zip(scores, costs, strict=True))
    ]


def trial_count(settings: Mapping[str, Any]) -> int:
    """How many trials, at most, the search of a stage with these settings has."""
    asked = QatSweepSettings.model_validate(settings)
    return Search(asked.sweep, asked.qat, asked.seed).asked
