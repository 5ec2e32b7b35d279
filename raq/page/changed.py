"""The section of what a candidate answers otherwise than FP32: by class, from class to class, sample by sample.

Neither torch nor ray.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from raq.page.parts import Cell, Figure, Gallery, Section, Table, name_of, number
from raq.page.pictures import Thumbnails
from raq.page.plots import plain
from raq.page.records import RunRecords
from raq.report.changed_answers import MAX_CLASSES, class_names, classes_that_lose
from raq.sweep.answers import Answers

MAX_CHANGED, MAX_PICTURES, MAX_DRAWN = 200, 48, 100


def changed(run: RunRecords) -> Section | None:
    """Which samples changed, and which classes lose."""
    base = run.answers.get("fp32")
    if base is None or not base.has_classes:
        return None
    names = _Names(run.summary["data"].get("class_names"))
    parts: list[Any] = []
    for candidate in run.summary["candidates"]:
        mine = run.answers.get(candidate["name"])
        if candidate["kind"] != "fp32" and mine is not None and mine.same_samples(base):
            parts += [
                _by_class(candidate["name"], base, mine, names),
                *_confusion(candidate["name"], base, mine, names),
                *_pictures(candidate["name"], base, mine, names, run.thumbnails),
                *_samples(candidate["name"], base, mine, names),
            ]
    how = (
        "Only fp32 right: what the candidate loses; only the candidate right: what it wins.",
        "Samples are numbered as the test split has them.",
        "Of images, the 128 that FP32 is least sure of have a picture; others may have changed too.",
    )
    return Section("classes", "What changed", how, parts, is_open=False) if parts else None


class _Names:
    """What classes are called: by their number where they have no names."""

    def __init__(self, given: Sequence[str] | None) -> None:
        self.called = class_names(given)

    def __call__(self, label: int) -> str:
        return self.called(label)

    def cell(self, label: int) -> Cell:
        """Sorted by the class's number."""
        return Cell(self(label), label)


def _by_class(name: str, base: Answers, mine: Answers, names: _Names) -> Table:
    """The classes that lose most."""
    rows = [
        [
            names.cell(one["label"]), number(one["samples"], "d"), *(number(100 * share) for share in one["right"]),
            number(one["lost"], "d"), number(one["won"], "d"),
        ]
        for one in classes_that_lose(base, mine)[:MAX_CLASSES]
    ]  # fmt: skip
    columns = ["class", "samples", "fp32, % right", f"{name}, % right", "only fp32 right", f"only {name} right"]
    return Table(f"{name}: the {len(rows)} classes that lose most", columns, rows)


def _confusion(name: str, base: Answers, mine: Answers, names: _Names) -> list[Figure]:
    """From which class to which answers changed; nothing if none did, or if there are too many classes to draw."""
    pairs = Counter(zip(base.values[0].tolist(), mine.values[0].tolist(), strict=True))
    moved = {pair: count for pair, count in pairs.items() if pair[0] != pair[1]}
    labels = sorted({label for pair in moved for label in pair})
    if not moved or len(labels) > MAX_DRAWN:
        return []
    called, places = [plain(names(label)) for label in labels], list(range(len(labels)))
    data = [
        {
            "type": "heatmap", "x": places, "y": places, "colorscale": "Blues", "xgap": 1, "ygap": 1, "name": "changed",
            "z": [[moved.get((row, column)) for column in labels] for row in labels],
            "customdata": [[[row, column] for column in called] for row in called],
            "hovertemplate": "fp32 says %{customdata[0]}, " + plain(name)
            + " says %{customdata[1]}: %{z}<extra></extra>",
        }
    ]  # fmt: skip
    layout = {
        "xaxis": {"title": {"text": plain(f"{name} says")}, "tickvals": places, "ticktext": called},
        "yaxis": {"title": {"text": "fp32 says"}, "tickvals": places, "ticktext": called, "autorange": "reversed"},
    }
    most = max(moved, key=lambda pair: moved[pair])
    says = (
        f"{sum(moved.values())} of {base.samples} answers of {name} changed; most often, {moved[most]} times, from "
        f"{names(most[0])} to {names(most[1])}. What did not change is left out."
    )
    return [Figure(name_of("confusion", name), says, data, layout, 180 + 26 * min(len(labels), 24))]


def _pictures(
    name: str, base: Answers, mine: Answers, names: _Names, thumbnails: Thumbnails | None
) -> list[Gallery | Sequence[str]]:
    """The changed images that were kept."""
    if thumbnails is None:
        return []
    places = (mine.values[0] != base.values[0]).nonzero()[0].tolist()
    found: list[tuple[bytes, str]] = []
    for place in places:
        png = thumbnails.png(place)
        if png is not None and len(found) < MAX_PICTURES:
            truth, before, after = (
                names(int(value)) for value in (base.values[1][place], base.values[0][place], mine.values[0][place])
            )
            found.append((png, f"{place}: {truth}; fp32 {before}, {name} {after}"))
    if not found:
        return []
    return [
        Gallery(
            f"{name}: {len(found)} of the {len(places)} images whose class changed (number: class; what each says)",
            found,
        )
    ]


def _samples(name: str, base: Answers, mine: Answers, names: _Names) -> list[Table | Sequence[str]]:
    """The samples that are classified otherwise."""
    places = (mine.values[0] != base.values[0]).nonzero()[0]
    rows = [
        [
            number(int(at), "d"),
            *(names.cell(int(value)) for value in (base.values[1][at], base.values[0][at], mine.values[0][at])),
        ]
        for at in places[:MAX_CHANGED]
    ]
    first = f" (the first {MAX_CHANGED})" if len(places) > MAX_CHANGED else ""
    caption = f"{name}: {len(places)} of {base.samples} answers changed{first}"
    return [Table(caption, ["test sample", "class", "fp32 says", f"{name} says"], rows)] if rows else [[caption]]
