"""What a candidate must reach (`require` in the experiment), checked against its records. Neither torch nor ray."""

import math

from raq.artifact.judgement import Evidence, Lowered, evidence_of, why_not_int8, why_not_int8_weights
from raq.errors import StageError
from raq.experiment.measurement import Require
from raq.plan.stages import Stage
from raq.statistics.proportions import proportion_interval
from raq.store.files import Record
from raq.store.views import View, view

# Least SQNR in dB of a step against the step before it, by (candidate, step). What converts, compiles or loads changes
# the order of additions, at most the rounding of single activations; measured figures are in results/log.md.
MIN_SQNR_DB = {
    ("half", "converted"): 20.0,
    ("dynamic", "lowered"): 10.0,
    ("dynamic", "reloaded"): 60.0,
    ("weight_only", "lowered"): 20.0,  # roundings to 16 bits fall elsewhere
    ("weight_only", "reloaded"): 60.0,
    ("half", "lowered"): 20.0,  # Inductor keeps what it fuses in float32
    ("half", "reloaded"): 60.0,
    ("qat", "prepared"): 60.0,  # both in float32
    ("ptq", "converted"): 20.0,
    ("qat", "converted"): 10.0,
    ("ptq", "lowered"): 10.0,
    ("qat", "lowered"): 10.0,
    ("fp32", "lowered"): 60.0,
    ("fp32", "reloaded"): 60.0,
    ("ptq", "reloaded"): 60.0,
    ("qat", "reloaded"): 60.0,
}
MIN_ON_GPU_DB = 40.0  # other kernels than the CPU's; where it is lowered, torch may round products to 10 bits (TF32)
SIGMAS = 3.0  # standard deviations of chance accuracy within which a top-1 counts as chance


class _Artifact(View):
    """Of a stage's settings, what is checked; those of a stage without an artifact have neither."""

    kind: str | None = None
    device: str = "cpu"
    quantizer: str | None = None


def _artifact(stage: Stage) -> _Artifact:
    return view(_Artifact, stage.settings, f"{stage.name}: settings")


class _ParityRow(View):
    step: str
    images: int
    against: str | None
    sqnr_db: float | None
    equal: bool | None
    changed: int | None


class _FloatLayer(View):
    name: str
    reason: str


class _Graph(View):
    """Of the evaluation of a program that is not lowered."""

    graph_int8_mac_share: float | None
    float_layers: tuple[_FloatLayer, ...]


class _ExecutedLayer(View):
    name: str
    macs: int
    kernel: str | None
    int8: bool


class _Results(Lowered):
    """What stages of any kind may leave that is checked; what comes together is checked together (store/schema.py)."""

    parity: tuple[_ParityRow, ...] = ()
    float_copies: tuple[str, ...] = ()
    classes: int | None = None
    correct: int = 0
    test_images: int = 0
    train_correct: int | None = None
    train_images: int = 0
    executed_int8_mac_share: float | None = None
    executed_half_mac_share: float | None = None
    executed_layers: tuple[_ExecutedLayer, ...] = ()
    float_by_choice_share: float = 0.0


def check_results(stage: Stage, values: Record, require: Require) -> None:
    """Raise StageError for a stage whose results do not prove what they must: quantized, whole, the same throughout."""
    results = view(_Results, values, f"{stage.name}: results")
    _check_quantized(stage, results, require)
    _check_meant(stage, values, require)
    if results.float_copies:
        raise StageError(
            f"{stage.name}: float weights are kept beside the int8 ones: {', '.join(results.float_copies[:10])}",
            "the artifact would be several times larger than it need be; convert must drop them",
        )
    for row in results.parity:
        _check_step(stage, row, require)
    _check_labels(stage, results)


def _check_step(stage: Stage, row: _ParityRow, require: Require) -> None:
    """A step of the parity chain against its tolerance."""
    candidate = _artifact(stage).kind or stage.kind
    rounding = (("ptq", "simulated"), ("dynamic", "converted"), ("weight_only", "converted"))
    limits = MIN_SQNR_DB | dict.fromkeys(rounding, require.sqnr_db)
    least = limits.get((candidate, row.step))
    if _artifact(stage).quantizer is not None and row.step == "lowered":
        least = None  # what another tool rounds in this step is measured as it comes
    if least is not None and _artifact(stage).device != "cpu":
        least = min(least, MIN_ON_GPU_DB)
    if least is None or row.equal or row.against is None:
        return
    if row.sqnr_db is None or row.sqnr_db < least:
        known = "an unknown" if row.sqnr_db is None else f"{row.sqnr_db:.1f} dB"
        otherwise = "" if row.changed is None else f"; {row.changed} of them are classified otherwise"
        raise StageError(
            f"{stage.name}: parity is lost at the step {row.against} -> {row.step}: {known} "
            f"SQNR of the logits on {row.images} test images, at least {least:g} is required{otherwise}",
            "this step does not compute what the one before it computed"
            if row.step != "simulated"
            else "set ptq.effort to best, or try another observer or more calibration images; a lower require.sqnr_db "
            "lets the run, and QAT, go on from this graph",
        )


def _check_labels(stage: Stage, results: _Results) -> None:
    """Whether the FP32 network knows the images that it was trained on, and the test split no better than by chance."""
    if results.train_correct is None or results.classes is None:
        return
    chance = 1 / results.classes
    low, _ = proportion_interval(results.train_correct, results.train_images)
    test = results.correct / results.test_images
    slack = SIGMAS * math.sqrt(chance * (1 - chance) / results.test_images)
    if test <= chance + slack and low > chance + 2 * slack:
        raise StageError(
            f"{stage.name}: top-1 is {100 * test:.1f}% on the test split, which is chance, and "
            f"{100 * results.train_correct / results.train_images:.1f}% on {results.train_images} training "
            "images: the test split's labels do not belong to its images",
            "see in what order the data set's function returns test images and labels",
        )


def _check_meant(stage: Stage, values: Record, require: Require) -> None:
    """The graph's share of int8, where the candidate is not lowered on this machine: all that is known of it."""
    if "graph_int8_mac_share" not in values:
        return
    results = view(_Graph, values, f"{stage.name}: results")
    share = results.graph_int8_mac_share
    if share is not None and share >= require.int8_mac_share:
        return
    named = ", ".join(f"{layer.name} ({layer.reason})" for layer in results.float_layers[:10]) or "none"
    known = "an unknown share" if share is None else f"{share:.3f}"
    raise StageError(
        f"{stage.name}: not quantized: the graph means {known} of the MACs to be int8, required is "
        f"{require.int8_mac_share:g}; float layers: {named}",
        "see the layers named; require.int8_mac_share sets the limit",
    )


def _check_quantized(stage: Stage, results: _Results, require: Require) -> None:
    """Raise StageError, naming the float layers, unless a quantized candidate does enough MACs in int8.

    For a lowered one by its code, for an evaluated one by the kernels that ran. Of a graph for CPUs that is lowered for
    a GPU nothing is required, as no int8 kernels exist for it: rows, verdict and card say that its arithmetic is float.
    """
    audit = results.audit
    if _artifact(stage).kind == "weight_only":
        _check_weights(stage, results, require)
        return
    if audit is None:
        _check_executed(stage, results, require)
        return
    missing = why_not_int8(evidence_of(results), require.int8_mac_share, require.float_weight_share)
    if not missing:
        return
    chosen = set(results.float_by_choice)
    floats = [
        *((x.macs, x.name, x.reason) for x in audit.layers if not x.int8 and x.name not in chosen),
        *((other.macs or 0, other.name, f"{other.operator}: no int8 kernel") for other in audit.others),
    ]
    costliest = sorted(floats, key=lambda layer: -layer[0])
    named = ", ".join(f"{name} ({reason})" for _, name, reason in costliest[:10]) or "none in the graph"
    problem = f"; {audit.problem}" if audit.problem else ""
    raise StageError(
        f"{stage.name}: not quantized: {' and '.join(missing)}; in float: {named}{problem}",
        "see the layers named; require.int8_mac_share and require.float_weight_share set the limits",
    )


def _check_weights(stage: Stage, results: _Results, require: Require) -> None:
    """Raise StageError if too little of a weight-only candidate reads int8 weights, by its code, or too much is floats.

    Its kernels are torch's own, not oneDNN's: nothing reports them when they run.
    """
    if results.audit is None:
        return
    missing = why_not_int8_weights(
        results.int8_weight_mac_share, require.int8_mac_share, results.float_weight_share, require.float_weight_share
    )
    if missing:
        raise StageError(
            f"{stage.name}: not quantized: {' and '.join(missing)}",
            "leave weight-only out of ptq.mode, or set require.int8_mac_share and require.float_weight_share otherwise",
        )


def _check_executed(stage: Stage, results: _Results, require: Require) -> None:
    """Raise StageError if too much of an evaluated artifact ran in kernels of a wider type than it is to, or if that is
    not known of a runtime that says what it runs."""
    kind = _artifact(stage).kind
    if kind == "half":
        _check_half(stage, results, require)
    share = results.executed_int8_mac_share
    if kind in ("fp32", "half", "weight_only") or _artifact(stage).quantizer is not None:
        return
    if share is None:
        if "executed_int8_mac_share" not in results.model_fields_set:  # nothing can say what runs there
            return
        raise StageError(
            f"{stage.name}: not shown to be quantized: it is not known how much of it ran in int8 kernels",
            "on a GPU: is torch's profiler allowed to see kernels? Else leave this runtime out of lower.runtimes",
        )
    evidence = Evidence(share, share, results.float_by_choice_share, None)
    if not why_not_int8(evidence, require.int8_mac_share, require.float_weight_share):
        return
    floats = sorted((row for row in results.executed_layers if not row.int8), key=lambda row: -row.macs)
    named = ", ".join(f"{row.name} ({row.kernel or 'no kernel is known'})" for row in floats[:10]) or "none"
    raise StageError(
        f"{stage.name}: not quantized: {share:.3f} of its MACs ran in int8 kernels, required is "
        f"{require.int8_mac_share * (1 - evidence.by_choice):.4g}; layers that did not: {named}",
        "see the layers named; require.int8_mac_share sets the limit",
    )


def _check_half(stage: Stage, results: _Results, require: Require) -> None:
    """Raise StageError if too little of an evaluated artifact ran in kernels of 16 bits."""
    share = results.executed_half_mac_share
    if stage.kind != "evaluate" or _artifact(stage).device != "cpu":
        return
    if share is None or share < require.half_mac_share:
        known = "an unknown share" if share is None else f"{share:.3f}"
        raise StageError(
            f"{stage.name}: not in half precision: {known} of its MACs ran in kernels of 16 bits, required is "
            f"{require.half_mac_share:.4g}",
            "set half to null, or require.half_mac_share to less",
        )
