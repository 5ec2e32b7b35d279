"""What a report says, as `raq show --json` and `raq compare --json` print it. Neither torch nor ray."""

from typing import Any, NotRequired

from typing_extensions import TypedDict

from raq.report.changed_answers import ChangedAnswers
from raq.store.evaluation_results import ParityRow
from raq.store.ptq_results import Climbed, LayerLoss, PtqMethods
from raq.store.results import Agreement, ArtifactProfile, Latency, Noise, Throughput
from raq.store.types import DataOfRun, Environment, Values


class ComparedLatency(Latency):
    """A latency with its speedup over the fastest FP32 there; `candidate` where a row stands alone."""

    candidate: NotRequired[str]
    speedup_over_best_fp32: NotRequired[float | None]
    speedup_over_best_fp32_interval: NotRequired[list[float] | None]
    best_fp32: NotRequired[str | None]
    launch_agreement_over_best_fp32: NotRequired[Agreement | None]


class Artifact(TypedDict):
    """A candidate's artifact on one device; None is what its record does not have."""

    runtime: NotRequired[str | None]
    target: str
    path: str
    size_bytes: int
    weight_bytes: int
    int8_mac_share: float | None
    int8_weight_mac_share: NotRequired[float | None]
    is_evaluated: NotRequired[bool]
    executed_int8_mac_share: float | None
    executed_half_mac_share: NotRequired[float | None]
    reorders_per_call: dict[str, int] | None
    resident_bytes: int | None
    sha256: str | None
    note: str | None
    ledger: dict[str, Any] | None


class MetricSummary(TypedDict):
    """The metric of a candidate. drop: how much worse than FP32, in points where the metric is a share of samples or of
    places, else in its own unit; less than 0 if it is better."""

    name: str
    unit: str
    greater_is_better: bool
    value: float
    interval: list[float]
    drop: float | None
    drop_interval: list[float] | None


class Accuracy(TypedDict):
    """Top-1 of a candidate, and its drop against FP32 on the same images; None of what is not known, and of another
    metric."""

    top1: float | None
    top1_interval: list[float] | None
    drop_points: float | None
    drop_interval: list[float] | None
    same_accuracy_p: float | None
    test_images: int | None
    metric: MetricSummary | None


class CandidateSummary(Accuracy):
    """What the records of a run say of one candidate. config: how it was made, as its section of the experiment.

    program: what it is lowered from, by name; candidates in several runtimes share it.
    """

    name: str
    kind: str
    program: str
    config: dict[str, Any]
    artifacts: list[Artifact]
    float_layers: list[str] | None
    backend: str | None
    not_lowered: str | None
    graph_int8_mac_share: float | None
    reduce_range: bool | None
    parity: list[ParityRow]
    latency: list[ComparedLatency]
    throughput: NotRequired[list[Throughput]]
    losses: NotRequired[list[LayerLoss]]
    methods: NotRequired[PtqMethods | None]
    start: NotRequired[str | None]
    effort: NotRequired[Climbed | None]
    changed: NotRequired[ChangedAnswers | None]


class Ending(TypedDict):
    """How a measurement ended, and what disturbed it."""

    protocol: str | None
    stopped_by: str | None
    elapsed_s: float | None
    launches: int | None
    noise: Noise


class MeasurementSummary(Ending):
    """How one device was measured. profiles: where the time goes, of artifacts of Inductor on a CPU.

    not_profiled, no_throughput: why there is none.
    """

    device: str
    profiles: NotRequired[list[ArtifactProfile]]
    not_profiled: NotRequired[str | None]
    no_throughput: NotRequired[str | None]


class PlainClaim(TypedDict):
    """A claim of the verdict; holds: None where it is not known."""

    claim: str
    value: float | None
    interval: list[float] | None
    margin: float
    holds: bool | None


class PlaceChoice(TypedDict):
    """What is shipped at one batch size on one device."""

    device: str
    batch_size: int
    choice: str | None


class Verdict(TypedDict):
    """What to ship, and why; choice: None where that is not known. worth: what QAT gains over PTQ, and takes."""

    choice: str | None
    why: str
    claims: list[PlainClaim]
    choices: list[PlaceChoice]
    worth: NotRequired[str | None]


class RunSummary(TypedDict):
    """What a run came to; what is not there (yet) is None.

    executions: by stage, the id of the one that is shown; made_anew: stages of which the run itself had another one.
    """

    run: str
    experiment: str
    complete: bool
    error: str | None
    executions: dict[str, str | None]
    made_anew: list[str]
    environment: Environment
    notes: list[str]
    data: DataOfRun
    candidates: list[CandidateSummary]
    sweep: Values | None
    qat_sweep: Values | None
    layer_sweep: Values | None
    measurement: list[MeasurementSummary]
    verdict: Verdict
