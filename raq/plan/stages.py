"""What will be done: the stages of an experiment, each with a fingerprint (stale.py says which are done already).

A fingerprint covers all that can change a stage's outcome and nothing else: its part of the experiment, its inputs'
fingerprints, the data's digest, the code of the stage (without comments and docstrings) and the user's, the versions of
Python and of the libraries it uses, environment variables that choose kernels, and, for lower, evaluate and bench, the
machine. Imports neither torch nor ray.
"""

import platform
from collections.abc import Mapping
from dataclasses import dataclass, field

from raq.environment import (
    NUMERIC_SETTINGS,
    chosen_settings,
    has_vnni,
    versions,
)
from raq.errors import UserError
from raq.experiment.execution import Resources
from raq.experiment.fields import HALF_NAMES, MODE_KINDS, MODE_NAMES
from raq.experiment.metric import loss_of
from raq.experiment.ptq import Calibration, Ptq
from raq.experiment.schema import Experiment
from raq.experiment.sweep import PtqSweep, Sweep
from raq.experiment.training import Qat
from raq.plan.candidates import candidates_of
from raq.plan.deployment import Deployment
from raq.plan.facts import (
    Facts,
    Settings,
    data_settings,
    devices,
    refuse_half,
    runtime_libraries,
)
from raq.plan.fingerprints import code_of_kind, code_of_trial, depends_on
from raq.plan.kinds import KINDS, Pool
from raq.store.files import digest


@dataclass(frozen=True)
class Stage:
    """One thing to do. inputs: role -> the name of an earlier stage; settings: plain values, all fingerprinted."""

    name: str
    kind: str
    pool: Pool
    settings: Settings
    inputs: dict[str, str]
    fingerprint: str
    resources: Resources
    workers: int = 1  # of a training that may have fewer: the most
    least_workers: int | None = None
    depends: dict[str, str] = field(default_factory=dict)
    """What the fingerprint covers, by name, each as a short text: to say what has changed."""


def make_plan(experiment: Experiment, facts: Facts) -> list[Stage]:
    """The stages, each after its inputs."""
    plan = _Plan(experiment, facts)
    if facts.weights is None:
        settings = experiment.train.model_dump(mode="json", exclude={"recipe"})  # the values count, not their name
        wanted = {**plan.common, "train": settings, "device": plan.training_device}
        plan.add("train", "train", "train", wanted, workers=experiment.train.workers)
    else:
        plan.add("train", "weights", "quantize", {**plan.common, "weights": facts.weights})
    plan.add_candidates()
    Deployment(plan).add()
    return list(plan.stages.values())


class _Plan:
    """A plan while it is made."""

    def __init__(self, experiment: Experiment, facts: Facts) -> None:
        self.experiment = experiment
        self.facts = facts
        self.candidates = candidates_of(experiment)
        self.stages: dict[str, Stage] = {}
        self.training_device = "cuda" if experiment.resources.train.gpus else "cpu"
        self.data = data_settings(experiment, facts)
        self.numeric = chosen_settings(facts.machine.settings, NUMERIC_SETTINGS)
        self.common: Settings = {
            "model": experiment.model.name,
            "seed": experiment.seed,
            "data": self.data,
            "sources": facts.sources,
            "environment": self.numeric,
            "metric": experiment.metric.model_dump(mode="json"),
            "loss": loss_of(experiment.metric, experiment.loss),
            "output": experiment.model.output,
        }
        self.parity: Settings = {"parity_images": experiment.parity.images}

    def add(
        self,
        name: str,
        kind: str,
        pool: Pool,
        settings: Settings,
        inputs: Mapping[str, str] | None = None,
        workers: int | tuple[int, int] = 1,
    ) -> None:
        """Add a stage, with the fingerprint of all that it depends on."""
        inputs = dict(inputs or {})
        content = {
            "kind": kind,
            "settings": settings,
            "inputs": {role: self.stages[stage].fingerprint for role, stage in inputs.items()},
            "code": code_of_kind(kind),
            "libraries": {
                "python": platform.python_version(),
                **versions((*KINDS[kind].libraries, *runtime_libraries(settings))),
            },
        }
        fingerprint = digest(content)
        resources: Resources = getattr(self.experiment.resources, pool)
        most, least = (workers, None) if isinstance(workers, int) else (workers[1], workers[0])
        depends = depends_on(content)
        self.stages[name] = Stage(name, kind, pool, settings, inputs, fingerprint, resources, most, least, depends)

    def add_candidates(self) -> None:
        """The stages that make quantized programs."""
        for dtype in self.experiment.half.dtypes if self.experiment.half is not None else ():
            refuse_half(dtype, self.facts.machine, devices(self.experiment, len(self.facts.machine.gpus)))
            settings = {**self.common, **self.parity, "half": {"dtype": dtype}}
            self.add(HALF_NAMES[dtype], "half", "quantize", settings, {"weights": "train"})
        saturates = not has_vnni(self.facts.machine)
        self._refuse_7_bits(saturates)
        for name, part in (("ptq", self.experiment.ptq), ("qat", self.experiment.qat)):
            if part is None:
                continue
            settings = {
                **self.common,
                **self.parity,
                "reduce_range": self._reduces_range(part, saturates),
                name: part.model_dump(mode="json", exclude={"others", "mode"}),
            }
            if isinstance(part, Ptq) and part.effort != "fast":
                settings["enough_drop"] = self.experiment.select.margin.accuracy
            if isinstance(part, Ptq):
                self._add_other_modes(part, reduce_range=settings["reduce_range"])
                if "static" not in part.mode:
                    continue
            inputs = {"weights": "train"}
            sweep = self.experiment.sweep or Sweep()
            pool: Pool = "quantize"
            workers: int | tuple[int, int] = 1
            if isinstance(part, Qat):
                settings["device"] = self.training_device
                inputs |= self._start(part)
                if part.start == "ptq" and "ptq" not in inputs:
                    own = Calibration(size=max(1, min(Calibration().size, self.facts.data.calibration_images)))
                    settings["calibration"] = own.model_dump(mode="json")
                if sweep.qat is None:
                    pool, workers = "train", part.workers
                else:  # what it chooses is trained already
                    assert isinstance(part.workers, int), "an Experiment allows no other in a sweep"
                    self._add_qat_sweep(settings, inputs, sweep, part.workers)
                    inputs["sweep"] = "sweep/qat"
            elif sweep.ptq is not None:
                self._add_ptq_sweep(settings, part, sweep.ptq)
                inputs["sweep"] = "sweep/ptq"
            self.add(name, name, pool, settings, inputs, workers)
            if name == "ptq" and sweep.layers is not None:
                self._add_mixed(settings, inputs, sweep)

    def _add_other_modes(self, ptq: Ptq, *, reduce_range: bool) -> None:
        """The candidates that no calibration precedes."""
        ranges = {"dynamic": {"reduce_range": reduce_range}}  # weights alone have no activations to round
        for name in (MODE_NAMES[mode] for mode in ptq.mode if mode != "static"):
            settings = {**self.common, **self.parity, **ranges.get(name, {})}
            self.add(name, MODE_KINDS[name], "quantize", settings, {"weights": "train"})

    def _reduces_range(self, part: Ptq | Qat, saturates: bool) -> bool:
        """Whether activations have 7 bits: as asked, else where 8 could saturate."""
        if isinstance(part, Qat) and self._start(part) and self.experiment.ptq is not None:
            part = self.experiment.ptq  # as that is quantized, of which it goes on
        asked = part.reduce_range if isinstance(part, Ptq) else None
        return part.backend == "x86" and (saturates if asked is None else asked)

    def _refuse_7_bits(self, saturates: bool) -> None:
        """UserError for 7-bit activations in a runtime whose artifacts cannot say that."""
        parts = {"ptq": self.experiment.ptq, "qat": self.experiment.qat}
        for candidate in self.candidates:
            part = parts.get(candidate.kind) if candidate.quantizer is None else None
            if part is not None and not candidate.runtime.has_7_bits and self._reduces_range(part, saturates):
                why = "as this CPU has no VNNI, and its int8 kernels could saturate" if saturates else "reduce_range"
                raise UserError(
                    f"lower.runtimes has {candidate.runtime.name}, whose files cannot say that activations have 7 bits "
                    f"({candidate.kind}: {why})",
                    f"leave {candidate.runtime.name} out here, or set ptq.reduce_range to false",
                )

    def _add_mixed(self, settings: Settings, inputs: dict[str, str], sweep: Sweep) -> None:
        """The search for layers to leave in float, and the candidates that it finds, calibrated as ptq is."""
        assert sweep.layers is not None
        own = {key: value for key, value in settings.items() if key != "parity_images"}
        fixed = {"sweep": self.stages[inputs["sweep"]].fingerprint if "sweep" in inputs else None}
        trials = self._trials("layer_sweep", settings, set(), fixed)
        asked = {"sweep": sweep.layers.model_dump(mode="json"), "max_drop": sweep.select.max_drop, "trials": trials}
        self.add("sweep/layers", "layer_sweep", "quantize", {**own, **asked}, inputs)
        for candidate in self.candidates:
            if candidate.configuration is not None and candidate.name == candidate.program:
                own = {**settings, "mixture": candidate.configuration}
                self.add(candidate.name, "ptq", "quantize", own, {**inputs, "layers": "sweep/layers"})

    def _add_ptq_sweep(self, settings: Settings, ptq: Ptq, sweep: PtqSweep) -> None:
        """The calibrations tried before PTQ."""
        kept = {"backend": ptq.backend, "batch_size": ptq.calibration.batch_size}
        trials = self._trials("ptq_sweep", settings, {"ptq", "seed", "reduce_range"}, kept)
        own = {key: value for key, value in settings.items() if key != "parity_images"}
        margin = self.experiment.select.margin.accuracy
        wanted = {**own, "sweep": sweep.model_dump(mode="json"), "margin": margin, "trials": trials}
        self.add("sweep/ptq", "ptq_sweep", "quantize", wanted, {"weights": "train"})

    def _start(self, qat: Qat) -> dict[str, str]:
        """The stage that QAT goes on from, by its role; none where there is no PTQ of its backend."""
        ptq = self.experiment.ptq
        if qat.start != "ptq" or ptq is None or "static" not in ptq.mode or ptq.backend != qat.backend:
            return {}
        return {"ptq": "ptq"}

    def _add_qat_sweep(self, settings: Settings, inputs: dict[str, str], sweep: Sweep, workers: int) -> None:
        """The trainings tried before QAT, each by so many workers."""
        assert sweep.qat is not None
        asked = {"space": sweep.qat.space, **sweep.model_dump(mode="json", include={"search", "scheduler", "trials"})}
        own = {key: value for key, value in settings.items() if key != "parity_images"}
        start = {role: self.stages[stage].fingerprint for role, stage in inputs.items() if role == "ptq"}
        wanted = {**own, "sweep": asked, "trials": self._trials("qat_sweep", settings, {"qat"}, start)}
        self.add("sweep/qat", "qat_sweep", "train", wanted, inputs, workers)

    def _trials(self, kind: str, settings: Settings, varied: set[str], fixed: Settings) -> str:
        """A name for what the trials of a sweep depend on, whichever of them are asked for."""
        return digest(
            {
                **{key: value for key, value in settings.items() if key not in {*varied, "parity_images"}},
                **fixed,
                "weights": self.stages["train"].fingerprint,
                "code": code_of_trial(kind),
                "libraries": versions((*KINDS[kind].libraries, *runtime_libraries(settings))),
            }
        )
