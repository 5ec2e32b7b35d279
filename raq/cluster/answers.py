"""What an actor says of a stage: it is finished, it failed, or it lost what it needs. Imports neither torch nor ray."""

from dataclasses import dataclass

from raq.store.files import Record


@dataclass(frozen=True)
class Answer:
    """What an actor says of a stage that it finished. id: of this execution; files, digests: what it left, in bytes
    and as SHA-256, None where the results are in a folder that the driver has; cpus: those of the stage; workers: how
    many trained, or ran trials; node: its address and labels, None of several; started_at: UTC, ISO 8601."""

    id: str
    results: Record
    files: dict[str, int] | None
    digests: dict[str, str] | None
    environment: Record
    cpus: int
    workers: int
    node: Record | None
    started_at: str
    duration_s: float


@dataclass(frozen=True)
class ErrorAnswer:
    """Why a stage failed. user: whether the user's input is at fault."""

    error: str
    hint: str
    user: bool


@dataclass(frozen=True)
class LostAnswer:
    """That a stage lost what it needs, which is no fault of its own. lost: what, in words; error: the error's type."""

    lost: str
    error: str
