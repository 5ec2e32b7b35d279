"""What `raq check` knows of an artifact. Must not import torch."""

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from raq.artifact.executed import Executed
from raq.artifact.judgement import OtherOperation
from raq.artifact.metadata import Metadata
from raq.artifact.sizes import Ledger


@dataclass(frozen=True)
class CheckedLayer:
    """A layer, or a kernel call of a stranger's artifact: what the code calls for it.

    macs: for one image, None if unknown; annotated: whether the graph means it to be int8, None without a graph.
    """

    name: str
    operator: str
    macs: int | None
    annotated: bool | None
    int8: bool
    kernel: str | None
    reason: str


@dataclass(frozen=True)
class Trial:
    """How an artifact ran, in a process without raq."""

    runtime: str
    load_s: float
    resident_bytes: int | None
    classes: int
    batches_sqnr_db: float | None


@dataclass
class Checked:
    """What is known of an artifact, as it grows; None is what is not known.

    vouched: whether it is the file of its record, None without one; by_choice_share: of the MACs, of layers that the
    user or a search left in float; total_macs: of the FP32 network; int8_launches: of raq's kernels for GPUs, for one
    sample, None if none could have been seen; problems: what is wrong with it.
    """

    path: str
    sha256: str | None
    size_bytes: int
    vouched: bool | None = None
    metadata: Metadata | None = None
    int8_mac_share: float | None = None
    by_choice_share: float = 0.0
    float_weight_share: float | None = None
    total_macs: int | None = None
    layers: list[CheckedLayer] = field(default_factory=list)
    others: list[OtherOperation] = field(default_factory=list)
    executed: Executed = field(default_factory=lambda: Executed(None))
    int8_launches: int | None = None
    ledger: Ledger | None = None
    ran: Trial | None = None
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_record(self) -> dict[str, Any]:
        """As plain values: what `raq check --json` prints."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {
            **{key: value for key, value in values.items() if key != "executed"},
            **self.executed.as_record(),
            "metadata": None if self.metadata is None else self.metadata.values,
            "layers": [asdict(layer) for layer in self.layers],
            "others": [other.model_dump() for other in self.others],
            "ledger": None if self.ledger is None else self.ledger.as_record(),
            "ran": None if self.ran is None else asdict(self.ran),
        }
