"""What changed from one run to another: keys of the experiment, and stages with why. From records alone.

Neither torch nor ray.
"""

from collections.abc import Mapping
from typing import Any

from typing_extensions import TypedDict

from raq.plan.stale import difference
from raq.store.files import Record


class ChangedKey(TypedDict):
    """A key of the experiment; values: in the first run and in the second, None where it is not there."""

    key: str
    values: list[Any]


class ChangedStage(TypedDict):
    """A stage of both runs.

    shared: whether both stand on the same execution; follows: whether all that differs is what it is made from; why:
    what it depends on that differs.
    """

    name: str
    shared: bool
    follows: bool
    why: str


def changed_keys(first: Record, second: Record) -> list[ChangedKey]:
    """The keys of the two experiments whose values differ, as they were set or filled in; not their names."""
    before, after = flat(first["settings"]), flat(second["settings"])
    return [
        ChangedKey(key=key, values=[before.get(key), after.get(key)])
        for key in {**before, **after}
        if before.get(key) != after.get(key) and key != "name"
    ]


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """The values in sections, each by its whole key."""
    if not isinstance(value, Mapping) or not value:
        return {name: value}
    return {
        key: one
        for part, inner in value.items()
        for key, one in flat(inner, f"{name}.{part}" if name else part).items()
    }


def changed_stages(first: Record, second: Record) -> list[ChangedStage]:
    """The stages that both runs name, in the order of the second."""
    found = []
    for name, after in second["stages"].items():
        before = first["stages"].get(name)
        if before is None:
            continue
        same = before["fingerprint"] == after["fingerprint"]
        shared = same and before.get("id") is not None and before.get("id") == after.get("id")
        if shared:
            why = ""
        elif same:
            why = "done again: all that it depends on is the same"
        else:
            why = difference(before.get("depends") or {}, after.get("depends") or {})
        follows = not same and _follows(before.get("depends") or {}, after.get("depends") or {})
        found.append(ChangedStage(name=name, shared=shared, follows=follows, why=why))
    return found


def _follows(before: Mapping[str, str], after: Mapping[str, str]) -> bool:
    """Whether inputs alone differ."""
    changed = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    return bool(changed) and all(name.startswith("inputs/") for name in changed)
