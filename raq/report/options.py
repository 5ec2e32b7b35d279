"""What may be shipped at a place: a candidate in a runtime, and which of two is cheaper. Neither torch nor ray."""

from dataclasses import dataclass

from raq.experiment.schema import BASELINE
from raq.report.ratios import Place, fastest, rows_at, runtime_of
from raq.report.types import Artifact, CandidateSummary, ComparedLatency

SAME_SIZE = 0.01  # weights that differ by less are equally large
# what making a candidate takes, of candidates that are otherwise alike
WORK = {"fp32": 0, "half": 1, "weight_only": 1, "dynamic": 1, "ptq": 2, "qat": 3}


@dataclass(frozen=True)
class Option:
    """A candidate in one runtime at a place."""

    candidate: CandidateSummary
    row: ComparedLatency

    @property
    def name(self) -> str:
        """The candidate's."""
        return str(self.candidate["name"])

    @property
    def program(self) -> str:
        """What the candidate is lowered from, by name."""
        return str(self.candidate.get("program", self.name))

    @property
    def fp32(self) -> bool:
        """Whether it is FP32."""
        return self.candidate["kind"] == BASELINE

    @property
    def contender(self) -> str:
        """Candidate and runtime."""
        return f"{self.name}/{self.row['runtime']}"

    @property
    def work(self) -> int:
        """What making it takes, in rising order."""
        return WORK.get(self.candidate["kind"], 1)

    @property
    def _artifact(self) -> Artifact:
        """Its artifact; the candidate's first one in eager mode, which has none of its own."""
        return artifact_of(self.candidate, self.row)

    @property
    def weight_bytes(self) -> int:
        """Of the artifact's weights."""
        return int(self._artifact["weight_bytes"])

    @property
    def file_bytes(self) -> int:
        """Of the artifact's file."""
        return int(self._artifact["size_bytes"])

    def smaller_than(self, other: "Option") -> bool:
        """Whether its weights are, by more than counts."""
        return self.weight_bytes < (1 - SAME_SIZE) * other.weight_bytes

    def cheaper_than(self, other: "Option") -> bool:
        """Whether it is smaller or, equally large, takes less to make."""
        return self.smaller_than(other) or (not other.smaller_than(self) and self.work < other.work)


def artifact_of(candidate: CandidateSummary, row: ComparedLatency) -> Artifact:
    """The artifact that a row measured; in eager mode, which has none of its own, the one for its device, or any."""
    there = [a for a in candidate["artifacts"] if a.get("target", row["device"]) == row["device"]]
    own = [a for a in there if a.get("runtime", "inductor") == runtime_of(row)]
    return (own or there or candidate["artifacts"])[0]


def options_at(candidate: CandidateSummary, place: Place) -> list[Option]:
    """What of a candidate may be shipped at a place: FP32 in every runtime, others as artifacts."""
    rows = rows_at(candidate, place)
    if candidate["kind"] == BASELINE:
        return [Option(candidate, row) for row in rows]
    row = fastest([row for row in rows if runtime_of(row) != "eager"])
    return [Option(candidate, row)] if row is not None and candidate["artifacts"] else []
