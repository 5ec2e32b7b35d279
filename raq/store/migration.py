"""Records of older versions of raq, read as those of today. The one place that knows what has changed.

0.2 called the sweep of calibrations `sweep`; it is `ptq_sweep`. A record stays as it is where it lies: its digest of
itself is checked before it is migrated.
"""

from typing import Any

KINDS = {"sweep": "ptq_sweep"}
EARLIER = {new: old for old, new in KINDS.items()}
Record = dict[str, Any]


def migrated_run(run: Record) -> Record:
    """A run's record, its stages' kinds called as they are today. Values of other types stay, to be refused."""
    stages = run.get("stages")
    if not isinstance(stages, dict):
        return run
    return {**run, "stages": {name: migrated_stage(stage) for name, stage in stages.items()}}


def migrated_stage(stage: Any) -> Any:
    """A stage's record, or what a run says of it, its kind called as it is today."""
    if not isinstance(stage, dict) or not isinstance(stage.get("kind"), str):
        return stage
    return {**stage, "kind": KINDS.get(stage["kind"], stage["kind"])}


def earlier_folder(name: str) -> str | None:
    """What an older version called a stage's folder, <kind>-<fingerprint>; None if it called it so too."""
    kind, _, fingerprint = name.rpartition("-")
    return f"{EARLIER[kind]}-{fingerprint}" if kind in EARLIER else None
