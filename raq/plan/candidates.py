"""The candidates of an experiment: what is lowered, evaluated, measured and chosen from. Neither torch nor ray."""

from dataclasses import dataclass
from typing import Literal

from raq.artifact.runtimes import Runtime, runtime_of_backend
from raq.experiment.schema import BASELINE, Experiment, Ptq
from raq.experiment.training import Qat

CandidateKind = Literal["fp32", "ptq", "qat"]


@dataclass(frozen=True)
class Candidate:
    """One version of the network.

    name: fp32, ptq, qat, mixed-1, ...; kind: how it is quantized; backend: whose kernels its graph is annotated for,
    None for fp32; runtime: what executes its artifacts; configuration: of mixed precision, which one of the search for
    layers, from 1.
    """

    name: str
    kind: CandidateKind
    backend: str | None
    runtime: Runtime
    configuration: int | None = None


def candidates_of(experiment: Experiment) -> tuple[Candidate, ...]:
    """The candidates of an experiment, the baseline first."""
    found = [_candidate(BASELINE, "fp32", None)]
    if experiment.ptq is not None:
        found.append(_candidate("ptq", "ptq", experiment.ptq))
        layers = experiment.sweep.layers if experiment.sweep is not None else None
        count = layers.candidates if layers is not None else 0
        found += [_candidate(f"mixed-{number}", "ptq", experiment.ptq, number) for number in range(1, count + 1)]
    if experiment.qat is not None:
        found.append(_candidate("qat", "qat", experiment.qat))
    return tuple(found)


def _candidate(name: str, kind: CandidateKind, part: Ptq | Qat | None, configuration: int | None = None) -> Candidate:
    backend = None if part is None else part.backend
    return Candidate(name, kind, backend, runtime_of_backend(backend), configuration)
