"""The stages that deploy: lower, evaluate and measure every candidate on every device. Neither torch nor ray."""

from collections.abc import Iterable, Mapping
from typing import Protocol

from raq.environment import COMPILER_SETTINGS, NUMERIC_SETTINGS, TIMING_SETTINGS, chosen_settings, has_vnni
from raq.experiment.schema import BASELINE, Experiment
from raq.plan.candidates import Candidate
from raq.plan.facts import (
    Facts,
    Settings,
    devices,
    lower_stage_name,
    pool_of_device,
    refuse_runtimes,
    why_not_lowered,
)
from raq.plan.kinds import Pool

ALONE = {"arm": ("cpu",), "cuda": ("cuda",)}  # devices of backends that have kernels for less than their runtime


class Plan(Protocol):
    """What deployment needs of a plan in the making."""

    experiment: Experiment
    facts: Facts
    candidates: tuple[Candidate, ...]
    data: Settings
    numeric: Settings
    common: Settings
    parity: Settings

    def add(
        self, name: str, kind: str, pool: Pool, settings: Settings, inputs: Mapping[str, str] | None = None
    ) -> None:
        """Add a stage."""


class Deployment:
    """Adds its stages to a plan."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def add(self) -> None:
        """The stages that lower, evaluate and measure every candidate on every device."""
        where = devices(self.plan.experiment, len(self.plan.facts.machine.gpus))
        refuse_runtimes(self.plan.experiment, where)
        for candidate in self.plan.candidates:
            for device in self._targets(candidate, where):
                self._add_lower(candidate, device)
            self._add_evaluate(candidate, where)
        for device in where:
            there = [c for c in self.plan.candidates if device in self._targets(c, where)]
            if there:  # on a GPU that was found, and that nothing asked for, there may be none
                self._add_bench(device, there)

    def _targets(self, candidate: Candidate, where: Iterable[str]) -> list[str]:
        """The devices that a candidate is lowered for; none where its backend's kernels cannot be compiled."""
        machine = self.plan.facts.machine
        asked = self.plan.experiment.bench.devices
        if why_not_lowered(candidate.backend, machine.architecture, len(machine.gpus), asked):
            return []
        able = ALONE.get(candidate.backend or "", candidate.runtime.devices)
        return [device for device in where if device in able]

    def _runtime(self, candidate: Candidate) -> Settings:
        """What executes a candidate's artifact, its largest batch, and another tool's quantization, if it has these."""
        runtime, ptq = candidate.runtime, self.plan.experiment.ptq
        more: Settings = {"max_batch": self.plan.experiment.lower.max_batch} if runtime.has_max_batch else {}
        if candidate.quantizer is not None and ptq is not None:
            calibration = ptq.calibration.model_dump(mode="json", include={"size", "batch_size"})
            more |= {"quantizer": candidate.quantizer, "calibration": calibration}
            if candidate.quantizer == "onnxruntime":  # NNCF looks by itself
                more["reduce_range"] = (
                    not has_vnni(self.plan.facts.machine) and "avx2" in self.plan.facts.machine.features
                )
        return {"runtime": runtime.name, **more}

    def _add_evaluate(self, candidate: Candidate, where: Iterable[str]) -> None:
        targets = self._targets(candidate, where)
        device = targets[0] if targets else "cpu"
        settings = {
            **self.plan.parity,
            "data": {**self.plan.data, "test_limit": self.plan.experiment.data.test_limit},
            "metric": self.plan.experiment.metric.model_dump(mode="json"),
            "sources": self.plan.facts.sources,
            "candidate": candidate.name,
            "kind": candidate.kind,
            "device": device,
            "seed": self.plan.experiment.seed,
            "environment": self.plan.numeric,
            **(self._runtime(candidate) if targets else {}),
            "machine": self.plan.facts.machine.as_record("cpu", "architecture", "features"),
        }
        source = {"artifact": lower_stage_name(candidate.name, device)} if targets else {"program": candidate.program}
        self.plan.add(f"evaluate/{candidate.name}", "evaluate", pool_of_device(device), settings, source)

    def _add_lower(self, candidate: Candidate, device: str) -> None:
        machine = self.plan.facts.machine.as_record("cpu", "architecture", "features")
        compiled_by = chosen_settings(self.plan.facts.machine.settings, COMPILER_SETTINGS)
        bench = self.plan.experiment.bench
        threads = bench.threads or self.plan.experiment.resources.bench.cpus or self.plan.facts.machine.cpus
        settings = {
            **self.plan.common,
            **self.plan.parity,
            "candidate": candidate.name,
            "kind": candidate.kind,
            "device": device,
            **self._runtime(candidate),
            **({"min_batch": min(bench.batch_sizes)} if candidate.runtime.packs_weights else {}),
            **({"batch_sizes": sorted(bench.batch_sizes)} if candidate.runtime.is_tuned else {}),
            **({"threads": threads} if candidate.runtime.is_native and device == "cpu" else {}),
            "machine": {**machine, "gpus": self.plan.facts.machine.gpus if device == "cuda" else []},
            "compiler": {"version": self.plan.facts.machine.compiler, **compiled_by},
        }
        source = {"weights": "train"} if candidate.program == BASELINE else {"program": candidate.program}
        self.plan.add(lower_stage_name(candidate.name, device), "lower", pool_of_device(device), settings, source)

    def _add_bench(self, device: str, candidates: list[Candidate]) -> None:
        ignored = {"devices", *(("tf32", "cuda_graphs") if device == "cpu" else ("streams",))}
        settings = {
            "bench": self.plan.experiment.bench.model_dump(mode="json", exclude=ignored),
            "device": device,
            "machine": self.plan.facts.machine.as_record("cpu", "architecture", "features", "cpus", "gpus"),
            "environment": chosen_settings(self.plan.facts.machine.settings, NUMERIC_SETTINGS, TIMING_SETTINGS),
            "model": self.plan.experiment.model.name,
            "classes": self.plan.facts.data.classes,
            "output": self.plan.experiment.model.output,
            "inputs": self.plan.facts.data.inputs,
            "cpus": self.plan.experiment.resources.bench.cpus,
            "sources": self.plan.facts.sources,
            "runtimes": {c.name: c.runtime.name for c in candidates},
            "kinds": {c.name: c.kind for c in candidates},
        }
        inputs = {"weights": "train", **{c.name: lower_stage_name(c.name, device) for c in candidates}}
        self.plan.add(f"bench/{device}", "bench", "bench", settings, inputs)
