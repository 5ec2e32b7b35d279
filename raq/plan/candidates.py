"""The candidates of an experiment: what is lowered, evaluated, measured and chosen from. Neither torch nor ray."""

from dataclasses import dataclass
from typing import Literal

from raq.artifact.runtimes import FP32_RUNTIME, RUNTIMES, Runtime, runtimes_of_backend
from raq.experiment.fields import HALF_NAMES, MODE_KINDS, MODE_NAMES, OTHER_TOOLS
from raq.experiment.ptq import Ptq
from raq.experiment.schema import BASELINE, Experiment
from raq.experiment.training import Qat

CandidateKind = Literal["fp32", "half", "weight_only", "dynamic", "ptq", "qat"]


@dataclass(frozen=True)
class Candidate:
    """One version of the network, in one runtime.

    name: fp32, bf16, ptq, dynamic, qat, mixed-1, ptq-openvino, ...; kind: how it is quantized; backend: whose
    kernels its graph is meant for, None if raq does not quantize it; runtime: what executes its artifacts; program: the
    stage that makes its program, which candidates in several runtimes share, fp32 for what other tools quantize;
    configuration: of mixed precision, which one of the search for layers, from 1; quantizer: the other tool that
    quantizes it.
    """

    name: str
    kind: CandidateKind
    backend: str | None
    runtime: Runtime
    program: str
    configuration: int | None = None
    quantizer: str | None = None


def candidates_of(experiment: Experiment) -> tuple[Candidate, ...]:
    """The candidates of an experiment, the baseline first; then those in the runtime asked for first, then others."""
    found = _candidates(BASELINE, "fp32", None, experiment)
    for dtype in experiment.half.dtypes if experiment.half is not None else ():
        found += _candidates(HALF_NAMES[dtype], "half", None, experiment)
    if experiment.ptq is not None:
        for mode in experiment.ptq.mode:
            if mode == "static":
                found += _candidates("ptq", "ptq", experiment.ptq, experiment)
            else:  # only Inductor has kernels for those
                name = MODE_NAMES[mode]
                found.append(Candidate(name, MODE_KINDS[name], experiment.ptq.backend, RUNTIMES["inductor"], name))
        for tool in experiment.ptq.others:
            runtime = RUNTIMES[OTHER_TOOLS[tool]]
            found.append(Candidate(tool, "ptq", None, runtime, BASELINE, quantizer=tool))
        layers = experiment.sweep.layers if experiment.sweep is not None else None
        count = layers.candidates if layers is not None else 0
        for number in range(1, count + 1):
            found += _candidates(f"mixed-{number}", "ptq", experiment.ptq, experiment, number)
    if experiment.qat is not None:
        found += _candidates("qat", "qat", experiment.qat, experiment)
    return tuple(sorted(found, key=lambda candidate: candidate.name != candidate.program))


def _candidates(
    program: str, kind: CandidateKind, part: Ptq | Qat | None, experiment: Experiment, configuration: int | None = None
) -> list[Candidate]:
    """A program in every runtime that executes it, of those asked for: the first under its own name."""
    backend = None if part is None else part.backend
    able = runtimes_of_backend(backend, experiment.lower.runtimes)
    if kind == "half":
        able = [runtime for runtime in able if runtime.has_half] or [RUNTIMES[FP32_RUNTIME]]
    return [
        Candidate(f"{program}-{runtime.name}" if number else program, kind, backend, runtime, program, configuration)
        for number, runtime in enumerate(able)
    ]
