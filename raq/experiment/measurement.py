"""The schema of what is proved and measured: lower, parity, bench, require, select."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from raq.experiment.fields import BatchSize, Natural, Positive, Section, Share

# What `bench.protocol: published` sets, where it is not written.
PUBLISHED_PROTOCOL: dict[str, Any] = {"warmup": 5, "repetitions": 50, "round_ms": 0.0, "rounds": 1, "precision": None}


class Lower(Section):
    """Compilation into what is deployed."""

    runtimes: Annotated[
        tuple[Literal["inductor", "openvino", "onnxruntime", "tensorrt"], ...], Field(strict=False, min_length=1)
    ] = ("inductor",)
    """What executes FP32 and the programs of the backends x86 and cuda; each makes contenders of its own: the first
    under the plain names (fp32, ptq, qat), the others as ptq-openvino and so on. inductor: an AOTInductor package that
    runs with torch alone. openvino, onnxruntime: an ONNX file with the same weights and scales (extras of the same
    names; CPU only). ONNX Runtime computes a convolution in int8 only if its output is quantized; raq quantizes what is
    added to a shortcut for it. Neither takes 7-bit activations (reduce_range). tensorrt: an engine built of such a file
    (the extra of that name; GPUs only; not run on one yet), of the backend cuda, FP32 and what `half` adds."""
    max_batch: BatchSize = 128
    """xnnpack, tensorrt: the largest batch that the file takes, as memory is planned for it and kernels are tuned for
    it; packages take any."""

    @model_validator(mode="after")
    def _check(self) -> "Lower":
        if len(set(self.runtimes)) < len(self.runtimes):
            raise ValueError(f"runtimes: {list(self.runtimes)} names a runtime twice")
        return self


class Bench(Section):
    """How latency is measured."""

    protocol: Literal["interleaved", "published"] = "interleaved"
    """interleaved: rounds of all contenders alternate, in new processes, until the speedups are known to
    `precision`. published: one contender after the other, `warmup` calls, then `repetitions` (50), mean and standard
    deviation; no intervals."""
    devices: Literal["auto"] | Annotated[tuple[Literal["cpu", "cuda"], ...], Field(strict=False, min_length=1)] = "auto"
    """auto: those that the cluster has."""
    batch_sizes: Annotated[tuple[BatchSize, ...], Field(strict=False, min_length=1)] = (1, 128)
    """Images a call, each size once; artifacts take at most 65,536."""
    cuda_graphs: bool = True
    """On GPUs, call each package as a CUDA graph too (+graph): its kernels are started at once, not one by one."""
    tf32: bool = True
    """On GPUs, measure FP32 also in TF32 (+tf32): tensor cores, of floats rounded to 10 bits. torch allows that in
    convolutions of itself; what is measured without +tf32, and the artifact that is evaluated, do without it."""
    threads: Positive | None = None
    """Intra-op threads; null: the CPUs of the bench actor."""
    streams: Positive | Literal["auto"] | None = None
    """Also measure throughput on CPUs: so many processes at once, of one thread and one CPU each, in images a second
    (like MLPerf's offline scenario); auto: one a CPU of the bench actor. It is shown, and decides nothing."""
    precision: Annotated[float, Field(gt=0, le=1)] | None = 0.02
    """Half width, relative to it, of the 95% interval of each ratio that decides (an artifact's time to that of the
    fastest FP32 artifact, and of the fastest of all) at which rounds end; null: after `rounds`."""
    budget_s: Annotated[float, Field(gt=0, le=86_400)] = 180.0
    """Seconds over which launches are spread: rounds end then in any case, and by precision not before a third of it;
    the record says which of the two it was."""
    rounds: Positive = 12
    """Rounds, at least; in each, every contender is timed once, in alternating order."""
    warmup: Natural = 2
    """Calls before the first timed one, at least; more until times are stable. The very first is reported apart."""
    repetitions: Positive = 1
    """Timed calls a contender and round, at least; published: in all."""
    round_ms: Annotated[float, Field(ge=0, le=60_000)] = 50.0
    """Milliseconds of timed calls a contender and round, at least."""

    @model_validator(mode="before")
    @classmethod
    def _fill_from_protocol(cls, given: Any) -> Any:
        published = isinstance(given, dict) and given.get("protocol") == "published"
        return {**PUBLISHED_PROTOCOL, **given} if published else given

    @model_validator(mode="after")
    def _check(self) -> "Bench":
        if len(set(self.batch_sizes)) < len(self.batch_sizes):
            raise ValueError(f"batch_sizes: {list(self.batch_sizes)} names a size twice")
        if self.protocol == "published" and (self.precision, self.rounds, self.round_ms) != (None, 1, 0.0):
            raise ValueError("protocol published takes no precision, rounds or round_ms: it is repetitions in one go")
        return self


class Parity(Section):
    """The proof that each step from FP32 to the saved artifact computes what the step before it computed."""

    images: Positive | None = 100
    """Test images on which the steps are compared (a fixed random sample); null: all of them."""


class Require(Section):
    """What a candidate must reach."""

    sqnr_db: Annotated[float, Field(ge=-100, le=200)] = 5.0
    """Signal-to-quantization-noise ratio of the logits, in dB, that PTQ must leave; below it, ptq fails."""

    int8_mac_share: Share = 0.95
    """Share in int8 of all multiply-accumulates of the FP32 network, layers left in float on purpose aside; below it,
    lowering a quantized candidate fails, by its code, and evaluating it, by the kernels that ran."""
    float_weight_share: Share = 0.5
    """Share of a quantized candidate's weights that may be stored as floats; above it, lowering fails."""
    half_mac_share: Share = 0.9
    """Share of all multiply-accumulates that kernels of 16 bits must have done, of the candidates of `half`; below it,
    evaluating them on a CPU fails. On a GPU nothing tells it."""
    max_drop: Annotated[float, Field(ge=0, le=1e9)] = 1.0
    """Points of top-1 (or of the metric; in its own unit if that is none of top1, top5, mean_iou, and then without a
    default) that a candidate may lose and still be chosen: the upper end of the drop's 95% interval, of all candidates
    at once, has to be within it."""


class Margin(Section):
    """What counts as equivalent."""

    accuracy: Annotated[float, Field(ge=0, le=1e9)] = 0.3
    """Points of top-1 (or of the metric) within which two candidates are equivalent; in the unit of another metric 0.3
    of require.max_drop."""
    speed: Annotated[float, Field(ge=0, le=1)] = 0.02
    """Share of the time of a call within which two candidates are equivalent."""


class Select(Section):
    """What decides between candidates that lose no more than `require.max_drop`."""

    margin: Margin = Margin()
    batch_size: BatchSize | None = None
    """The one of bench.batch_sizes whose choice is the run's, where they do not agree; null: the largest."""
