"""What each kind of stage leaves in its record as results: keys, types and bounds. Neither torch nor ray."""

from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from raq.store.evaluation_results import Evaluation, ParityRow
from raq.store.ptq_results import Climbed, LayerLoss, PtqMethods
from raq.store.sweep_results import LayerSweepResults, PtqSweepResults, QatSweepResults
from raq.store.types import Count, Name, Number, Pair, Positive, Share, Text, Values, strict


@strict
class AuditedLayer(TypedDict):
    """A layer, and the kernel that the artifact calls for it."""

    name: Text
    macs: Count
    int8: bool
    reason: NotRequired[Text]


@strict
class OtherOperation(TypedDict):
    """What multiplies and is no layer."""

    name: Text
    operator: Text
    macs: Count | None


@strict
class Audit(TypedDict):
    """`audit.Audit` as a record."""

    layers: list[AuditedLayer]
    int8_mac_share: Share | None
    problem: Text
    others: NotRequired[list[OtherOperation]]
    total_macs: NotRequired[Count | None]


@strict
class Lowering(TypedDict):
    """What a lower stage found."""

    target: Name
    size_bytes: Annotated[int, Field(ge=1, le=2**62)]
    weight_bytes: Annotated[int, Field(ge=1, le=2**62)]
    int8_mac_share: Share | None
    int8_weight_mac_share: NotRequired[Share | None]
    runtime: NotRequired[Name]
    sha256: NotRequired[Name]
    note: NotRequired[Text]
    ledger: NotRequired[Values]
    audit: NotRequired[Audit]
    float_by_choice: NotRequired[list[Text]]
    float_copies: NotRequired[list[Text]]
    float_weight_share: NotRequired[Share | None]
    macs: NotRequired[Count | None]
    parity: NotRequired[list[ParityRow]]


@strict
class Epoch(TypedDict):
    """Of a row of a training's history, what reports read."""

    loss: NotRequired[Number]
    images_per_s: NotRequired[Number]
    duration_s: NotRequired[Number]
    rescaled_layers: NotRequired[list[Text]]


@strict
class Quantizing(TypedDict):
    """What a half, ptq or qat stage found."""

    history: NotRequired[list[Epoch]]
    weight_bytes: NotRequired[Count]
    calibration: NotRequired[Values]
    config: NotRequired[Values]
    float_layers: NotRequired[list[Text]]
    reduce_range: NotRequired[bool]
    losses: NotRequired[list[LayerLoss]]
    methods: NotRequired[PtqMethods]
    effort: NotRequired[Climbed | None]
    start: NotRequired[Literal["ptq", "calibration", "fp32"]]
    parity: NotRequired[list[ParityRow]]


@strict
class Agreement(TypedDict):
    """How far the launches of a measurement agree."""

    between: Number | None
    within: Number | None
    p: Number | None
    correlation: Number
    drift_p: Number


@strict
class Latency(TypedDict):
    """One contender at one batch size."""

    runtime: Name
    device: Name
    batch_size: Annotated[int, Field(ge=1, le=2**32)]
    threads: NotRequired[Count]
    rounds: Annotated[int, Field(ge=1, le=2**40)]
    disturbed_rounds: NotRequired[Count]
    round_far: NotRequired[list[bool]]
    calm: NotRequired[bool | None]
    mean_ms: Positive
    std_ms: Number | None
    p50_ms: Positive
    p90_ms: Number | None
    p99_ms: NotRequired[Number | None]
    speedup: Positive
    speedup_interval: Pair | None
    baseline: Name
    round_p50_ms: list[Positive]
    round_launch: NotRequired[list[Count]]
    round_disturbed: NotRequired[list[bool]]
    round_number: NotRequired[list[Count]]
    launch_agreement: NotRequired[Agreement | None]


@strict
class BenchRow(Latency):
    """A latency, with its candidate."""

    candidate: Name


@strict
class Extent(TypedDict):
    """Mean and most of a disturbance."""

    mean: NotRequired[Number]
    max: Number


@strict
class Handover(TypedDict):
    """Microseconds that threads took to hand over."""

    near: Number
    median: Number
    most: Number
    remembered: NotRequired[Number | None]


@strict
class Noise(TypedDict, total=False):
    """How a measurement was disturbed."""

    waited: Extent | None
    foreign_cpus: Extent | None
    stolen_cpus: Extent | None
    handover_us: Handover | None
    gpus: list[Text]
    far_apart_slots: Count
    slots: Count
    disturbed_slots: Count | None
    repeated_slots: Count


@strict
class ProfiledLayer(TypedDict):
    """A kernel that multiplies; name: of its layer, None if it is not known."""

    name: Text | None
    kernel: Text
    dtype: Name
    ms: Number
    macs: Count | None
    gops: Number | None
    peak_share: Number | None


@strict
class ArtifactProfile(TypedDict):
    """Where the time of an artifact's calls goes, as `raq profile --json` has it."""

    candidate: Name
    runtime: Name
    batch_size: Count
    threads: Count
    calls: Count
    total_ms: Number
    layers: list[ProfiledLayer]
    other_ms: Number
    reorder_ms: Number
    other_kernels_ms: Number
    outside_onednn_ms: Number
    reorders_per_call: Count
    gops: Number | None
    peak_gops: Number | None
    peaks: Values


@strict
class Throughput(TypedDict):
    """Images a second of one contender at one batch size, in several processes at once.

    launch_images_per_s: a value a launch, images_per_s their median; waited_share: of the time, that the stream that
    waited longest could have run, the median of launches.
    """

    candidate: Name
    runtime: Name
    device: Name
    batch_size: Annotated[int, Field(ge=1, le=2**32)]
    scenario: Name
    streams: Count
    images_per_s: Positive
    launch_images_per_s: list[Positive]
    waited_share: NotRequired[Number | None]
    speedup: Positive
    speedup_interval: Pair | None
    baseline: Name
    speedup_over_best_fp32: Positive | None
    speedup_over_best_fp32_interval: Pair | None
    best_fp32: Name | None


@strict
class Measurement(TypedDict):
    """What a bench stage found."""

    rows: Annotated[list[BenchRow], Field(min_length=1)]
    protocol: NotRequired[Name | None]
    stopped_by: NotRequired[Literal["precision", "budget", "rounds", "repetitions"] | None]
    elapsed_s: NotRequired[Number]
    launches: NotRequired[Count]
    noise: NotRequired[Noise]
    profiles: NotRequired[list[ArtifactProfile]]
    throughput: NotRequired[list[Throughput]]
    no_throughput: NotRequired[Text | None]
    not_profiled: NotRequired[Text | None]


@strict
class Training(TypedDict):
    """What a train or weights stage found."""

    history: NotRequired[list[Epoch]]
    weight_bytes: NotRequired[Count]
    parity: NotRequired[list[ParityRow]]


SWEEPS: dict[str, Any] = {
    "ptq_sweep": PtqSweepResults,
    "qat_sweep": QatSweepResults,
    "layer_sweep": LayerSweepResults,
}
RESULTS: dict[str, Any] = {
    **SWEEPS,
    "train": Training,
    "weights": Training,
    "evaluate": Evaluation,
    "lower": Lowering,
    "half": Quantizing,
    "weight_only": Quantizing,
    "dynamic": Quantizing,
    "ptq": Quantizing,
    "qat": Quantizing,
    "bench": Measurement,
}
