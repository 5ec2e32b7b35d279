"""How long stages may take: as long as they took last, in an experiment of this name. Neither torch nor ray."""

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress

from raq.errors import UserError
from raq.plan.stages import Stage
from raq.plan.stale import EarlierRun, StageOfRun
from raq.store.local import Store
from raq.store.views import View, view


class _Took(View):
    duration_s: float | None = None


def expected_s(
    plan: Sequence[Stage], stale: Collection[str], earlier: Sequence[EarlierRun], name: str, store: Store
) -> Mapping[str, float]:
    """Seconds by stale stage, of the newest earlier run of the experiment `name` that has it; those unknown left out.

    earlier: runs, newest first. What has changed since may make a stage shorter or longer.
    """
    found: dict[str, float] = {}
    absent: set[tuple[str, str]] = set()
    for run in (run for run in earlier if run.experiment == name):
        for stage in plan:
            known = run.stages.get(stage.name)
            if known is None or stage.name not in stale or stage.name in found:
                continue
            if (known.kind, known.fingerprint) in absent:  # at an address each look is a request
                continue
            took_s = _duration_s(store, known)
            if took_s is None:
                absent.add((known.kind, known.fingerprint))
            else:
                found[stage.name] = took_s
    return found


def _duration_s(store: Store, stage: StageOfRun) -> float | None:
    """How long a finished stage took; None if it is not there, or its record does not say."""
    record = store.find(stage.kind, stage.fingerprint)
    with suppress(UserError):
        return None if record is None else view(_Took, record, stage.kind).duration_s
    return None
