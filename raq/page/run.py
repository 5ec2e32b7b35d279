"""All that a page is made of: a run as its records have it. Neither torch nor ray."""

from collections.abc import Mapping
from dataclasses import dataclass

from raq.report.claims import Rules
from raq.report.ratios import Place
from raq.report.types import RunSummary
from raq.store.answers import Answers
from raq.store.files import Record


@dataclass(frozen=True)
class Run:
    """All that a page is made of. stages: by name, a finished stage's record; answers: by candidate."""

    summary: RunSummary
    settings: Record
    stages: Mapping[str, Record]
    answers: Mapping[str, Answers | None]

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
