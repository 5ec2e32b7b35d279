"""All that a page is made of: a run as its records have it. Neither torch nor ray."""

from collections.abc import Mapping
from dataclasses import dataclass

from raq.artifact.runtimes import FP32_RUNTIME
from raq.page.pictures import Thumbnails
from raq.report.claims import Rules
from raq.report.ratios import Place, runtime_of
from raq.report.types import Artifact, CandidateSummary, ComparedLatency, RunSummary
from raq.store.files import Record
from raq.sweep.answers import Answers


@dataclass(frozen=True)
class RunRecords:
    """All that a page is made of. stages: by name, a finished stage's record; answers: by candidate; thumbnails: of the
    test images of which FP32 is least sure."""

    summary: RunSummary
    settings: Record
    stages: Mapping[str, Record]
    answers: Mapping[str, Answers | None]
    thumbnails: Thumbnails | None = None

    @property
    def rules(self) -> Rules:
        """Those of the verdict."""
        return Rules.of(self.settings)

    @property
    def places(self) -> list[Place]:
        """Devices and batch sizes that were measured; the one that decides comes first."""
        found = sorted({(row["device"], row["batch_size"]) for c in self.summary["candidates"] for row in c["latency"]})
        wanted = self.rules.batch_size or max((size for _, size in found), default=0)
        return sorted(found, key=lambda place: (place[1] != wanted, place))


def artifact_of(candidate: CandidateSummary, row: ComparedLatency) -> Artifact | None:
    """The file that a latency is of; None in eager mode."""
    wanted = (runtime_of(row), row["device"])
    here = (a for a in candidate["artifacts"] if (a.get("runtime") or FP32_RUNTIME, a["target"]) == wanted)
    return next(here, None)
