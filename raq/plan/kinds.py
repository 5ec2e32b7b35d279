"""Every kind of stage, in one table: what does it, where it may run, what its outcome depends on, how it is reported.

A new kind of stage is one entry here and one file in stages/. Functions are named as "module:function", so that
reading the table imports neither torch nor ray.
"""

from dataclasses import dataclass
from typing import Literal

Pool = Literal["train", "quantize", "bench"]


@dataclass(frozen=True)
class StageKind:
    """One kind of stage.

    run: the function (Call, Progress) -> Results that does it in one process. distributed: the same on a cluster, by
    several workers or trials at a time, (Call, EventSender) -> Results. training: of a kind that several workers train,
    the module whose `train_in(call, context)` each of them runs, and whose `finish(call, result)` makes the results.
    is_sweep: it consists of trials; trial: the module that does one; trial_count: settings -> how many there are, at
    most; None if that is known only when the network is exported. libraries: the distributions that its outcome depends
    on. needs_compiler: it compiles C++. in_pairs: much of it takes one CPU however many it has, so two of them share a
    node, if nothing else is asked for. summary: Results -> one line for people.
    """

    name: str
    run: str
    libraries: tuple[str, ...]
    summary: str
    distributed: str | None = None
    training: str | None = None
    is_sweep: bool = False
    trial: str | None = None
    trial_count: str | None = None
    needs_compiler: bool = False
    in_pairs: bool = False


TORCH = ("torch", "torchvision")
QUANTIZING = (*TORCH, "torchao", "numpy")
KINDS: dict[str, StageKind] = {
    kind.name: kind
    for kind in (
        StageKind("weights", "raq.stages.train:load_weights_stage", TORCH, "raq.report.lines:weights"),
        StageKind(
            "train",
            "raq.stages.train:train_stage",
            (*TORCH, "numpy"),
            "raq.report.lines:training",
            distributed="raq.cluster.ray_train:distributed_stage",
            training="raq.stages.train",
        ),
        StageKind("half", "raq.stages.half:half_stage", QUANTIZING, "raq.report.lines:weights"),
        StageKind("weight_only", "raq.stages.modes:weight_only_stage", QUANTIZING, "raq.report.lines:weights"),
        StageKind("dynamic", "raq.stages.modes:dynamic_stage", QUANTIZING, "raq.report.lines:weights"),
        StageKind("ptq", "raq.stages.ptq:ptq_stage", QUANTIZING, "raq.report.lines:weights"),
        StageKind(
            "qat",
            "raq.stages.qat:qat_stage",
            QUANTIZING,
            "raq.report.lines:training",
            distributed="raq.cluster.ray_train:distributed_stage",
            training="raq.stages.qat",
        ),
        StageKind(
            "ptq_sweep",
            "raq.stages.ptq_sweep:ptq_sweep_stage",
            QUANTIZING,
            "raq.report.lines:sweep",
            distributed="raq.cluster.ray_tune_ptq:distributed_ptq_sweep",
            is_sweep=True,
            trial="raq.stages.ptq_sweep",
            trial_count="raq.sweep.ptq:trial_count",
            needs_compiler=True,
        ),
        StageKind(
            "qat_sweep",
            "raq.stages.qat_sweep:qat_sweep_stage",
            (*QUANTIZING, "optuna"),
            "raq.report.lines:sweep",
            distributed="raq.cluster.ray_tune_qat:distributed_qat_sweep",
            is_sweep=True,
            trial="raq.stages.qat_sweep",
            trial_count="raq.sweep.qat:trial_count",
        ),
        StageKind(
            "layer_sweep",
            "raq.stages.layer_sweep:layer_sweep_stage",
            QUANTIZING,
            "raq.report.lines:sweep",
            distributed="raq.cluster.ray_tune_layers:distributed_layer_sweep",
            is_sweep=True,
            trial="raq.stages.layer_trial",
            needs_compiler=True,
        ),
        StageKind(
            "lower",
            "raq.stages.lower:lower_stage",
            QUANTIZING,
            "raq.report.lines:artifact",
            needs_compiler=True,
            in_pairs=True,
        ),
        StageKind(
            "evaluate",
            "raq.stages.evaluate:evaluate_stage",
            ("torch", "numpy"),
            "raq.report.lines:accuracy",
            in_pairs=True,
        ),
        StageKind("bench", "raq.stages.bench:bench_stage", TORCH, "raq.report.lines:latencies"),
    )
}
