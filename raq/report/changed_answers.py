"""Which answers of a candidate are others than FP32's, by class. Neither torch nor ray."""

from collections.abc import Callable
from typing import Any

from typing_extensions import TypedDict

from raq.sweep.answers import Answers

MAX_CLASSES, MAX_PLACES, MAX_SAID = 20, 100, 3


class ChangedClass(TypedDict):
    """One class of the test split. right: shares, of FP32 and of the candidate; lost: samples that only FP32 has right;
    won: that only the candidate has."""

    label: int
    samples: int
    right: list[float]
    lost: int
    won: int


class ChangedAnswers(TypedDict):
    """What changed. count, lost, won: of all samples; classes: those that lose most; places: the first samples whose
    class is another, as the test split numbers them."""

    count: int
    lost: int
    won: int
    samples: int
    classes: list[ChangedClass]
    places: list[int]


def changed_answers(base: Answers, mine: Answers) -> ChangedAnswers | None:
    """Of a candidate against FP32; None where there are no classes, or the samples are not the same."""
    if not base.has_classes or not mine.same_samples(base):
        return None
    places = (mine.values[0] != base.values[0]).nonzero()[0]
    return {
        "count": len(places), "lost": int((base.right & ~mine.right).sum()),
        "won": int((mine.right & ~base.right).sum()), "samples": base.samples,
        "classes": classes_that_lose(base, mine)[:MAX_CLASSES], "places": [int(at) for at in places[:MAX_PLACES]],
    }  # fmt: skip


def classes_that_lose(base: Answers, mine: Answers) -> list[ChangedClass]:
    """All classes, those first that lose most."""
    truth, found = base.values[1], []
    for label in sorted(set(truth.tolist())):
        own = truth == label
        found.append(
            ChangedClass(
                label=int(label), samples=int(own.sum()), right=[float(one.right[own].mean()) for one in (base, mine)],
                lost=int((own & base.right & ~mine.right).sum()), won=int((own & mine.right & ~base.right).sum()),
            )
        )  # fmt: skip
    return sorted(found, key=lambda one: one["won"] - one["lost"])


def class_names(given: Any) -> Callable[[int], str]:
    """What classes are called: by their number where they have no names."""
    known = list(given or ())
    return lambda label: str(known[label]) if 0 <= label < len(known) else str(label)


def changed_in_words(found: ChangedAnswers, called: Callable[[int], str]) -> str:
    """How many answers changed, which classes lose most, and where to look."""
    said = (
        f"{found['count']} of {found['samples']} answers are others than FP32's: {found['lost']} right ones lost, "
        f"{found['won']} won"
    )
    losing = [one for one in found["classes"] if one["lost"] > one["won"]][:MAX_SAID]
    if losing:
        parts = [
            f"{called(one['label'])} {100 * one['right'][0]:.1f} to {100 * one['right'][1]:.1f}% right"
            for one in losing
        ]
        said += f"; classes that lose most: {', '.join(parts)}"
    if found["places"]:
        said += f"; the first are test samples {', '.join(str(at) for at in found['places'][:5])}"
    return said
