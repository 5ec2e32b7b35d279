"""Records of older versions of raq, read as those of today. The one place that knows what has changed.

0.2 called the sweep of calibrations `sweep`; it is `ptq_sweep`. Files are not rewritten: a record's own digest is
verified, then it is migrated in memory.
"""

from typing import Any

KINDS = {"sweep": "ptq_sweep"}
OLD_NAMES = {new: old for old, new in KINDS.items()}
Record = dict[str, Any]


def migrated_run(run: Record) -> Record:
    """A run's record with today's kinds of stages. Malformed values pass through, and validation refuses them."""
    stages = run.get("stages")
    if not isinstance(stages, dict):
        return run
    return {**run, "stages": {name: migrated_stage(stage) for name, stage in stages.items()}}


def migrated_stage(stage: Any) -> Any:
    """A stage's record, or a run's entry of it, with today's kind."""
    if not isinstance(stage, dict) or not isinstance(stage.get("kind"), str):
        return stage
    return {**stage, "kind": KINDS.get(stage["kind"], stage["kind"])}


def earlier_folder(name: str) -> str | None:
    """The name that 0.2 gave a stage's folder, <kind>-<fingerprint>; None if it is the same."""
    kind, _, fingerprint = name.rpartition("-")
    return f"{OLD_NAMES[kind]}-{fingerprint}" if kind in OLD_NAMES else None
