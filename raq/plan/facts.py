"""Facts that a plan depends on beside the experiment: data, machine, devices, runtimes. Neither torch nor ray."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from pydantic import Field

from raq.artifact.runtimes import RUNTIMES, runtime_of_backend
from raq.environment import Machine, usable_features
from raq.errors import UserError
from raq.experiment.schema import ARM_ARCHITECTURES, HUB, Experiment
from raq.plan.kinds import Pool
from raq.store.views import View, view

Settings = dict[str, Any]
# what a CPU must have, one of them, to multiply numbers of 16 bits
HALF_FEATURES = {
    "bfloat16": ("avx512_bf16", "amx_bf16", "bf16"), "float16": ("avx512_fp16", "amx_fp16", "asimdhp"),
}  # fmt: skip


@dataclass(frozen=True)
class DataFound:
    """What the data were found to be, counts in samples. inputs: what the network is called with.

    class_names: in order, where they have names.

    Of images: image_shape, [channels, height, width]; mean, std: by channel, pixels / 255. None of other data.
    """

    digest: str
    source: str
    classes: int | None
    train_images: int
    validation_images: int
    test_images: int
    calibration_images: int
    inputs: list[dict[str, Any]]
    image_shape: list[int] | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    class_names: list[str] | None = None


@dataclass(frozen=True)
class Facts:
    """What a plan depends on besides the experiment.

    machine: where stages run; weights: SHA-256 of the weights file, if there is one; sources: what the code of the
    user's own functions is made of (`user_code.sources_of`), by name.
    """

    data: DataFound
    machine: Machine
    weights: str | None = None
    sources: dict[str, Any] = field(default_factory=dict)


def devices(experiment: Experiment, gpu_count: int) -> tuple[str, ...]:
    """The devices to deploy to: those asked for, or, for auto, the CPU and a GPU where there is one."""
    asked = experiment.bench.devices
    if asked == "auto":
        return ("cpu", "cuda") if gpu_count else ("cpu",)
    return tuple(dict.fromkeys(asked))


def why_not_lowered(backend: str | None, architecture: str, gpus: int, asked: str | Sequence[str]) -> str | None:
    """Why a candidate of this backend is not lowered on such a machine for the devices asked for (auto, or a list).

    architecture: as `platform.machine()` has it; gpus: how many there are. None if it is lowered; fp32 has no backend.
    """
    if backend in ("arm", "xnnpack") and asked != "auto" and "cpu" not in asked:
        return f"its int8 kernels are a CPU's, and bench.devices has {', '.join(asked)} alone"
    if backend == "cuda" and not (gpus if asked == "auto" else "cuda" in asked):
        where = "none was found" if asked == "auto" else f"bench.devices has {', '.join(asked)} alone"
        return f"its int8 kernels are a GPU's, and {where}"
    if backend == "arm" and architecture not in ARM_ARCHITECTURES:
        return f"its int8 kernels are compiled on an Arm machine, and this one is {architecture}"
    return None


def refuse_runtimes(experiment: Experiment, where: Iterable[str]) -> None:
    """UserError if a runtime that was asked for executes nothing on any of these devices, and has one of its own."""
    for name in experiment.lower.runtimes:
        if "cpu" not in RUNTIMES[name].devices and not set(RUNTIMES[name].devices) & set(where):
            raise UserError(
                f"lower.runtimes has {name}, for GPUs alone, and none was found",
                "leave it out, or run where there is a GPU",
            )


def refuse_half(dtype: str, machine: Machine, where: Iterable[str]) -> None:
    """UserError if this CPU, asked to, does not compute in this type of 16 bits (oneDNN would, slowly, by others)."""
    wanted = HALF_FEATURES[dtype]
    if "cpu" in where and not set(wanted) & set(usable_features(machine.features, machine.settings)):
        raise UserError(
            f"half.dtypes has {dtype}, and this CPU does not compute in it (it has none of {', '.join(wanted)})",
            "leave it out, set half to null, or measure on a machine that has it",
        )


class _Quantizer(View):
    backend: str


class _Runtimes(View):
    """Of a stage's settings, those that name a runtime, or a backend that has one."""

    runtime: str | None = None
    runtimes: dict[str, str] = Field(default_factory=dict)
    quantizer: str | None = None
    ptq: _Quantizer | None = None
    qat: _Quantizer | None = None


def runtime_libraries(settings: Settings) -> tuple[str, ...]:
    """The libraries of the runtimes that a stage uses, or whose backend's quantizer it uses."""
    asked = view(_Runtimes, settings, "settings")
    names = {asked.runtime, *asked.runtimes.values()}
    names |= {runtime_of_backend(part.backend).name for part in (asked.ptq, asked.qat) if part is not None}
    used = [RUNTIMES[name] for name in RUNTIMES if name in names]
    others = (asked.quantizer,) if asked.quantizer is not None else ()
    return tuple(dict.fromkeys((*(library for each in used for library in (*each.libraries, *each.made_by)), *others)))


def lower_stage_name(candidate: str, device: str) -> str:
    """The name of the stage that lowers a candidate for a device."""
    return f"lower/{candidate}" + ("" if device == "cpu" else f"/{device}")


def lowered_candidate(stage_name: str) -> str | None:
    """The candidate that a stage of this name lowers, for whatever device; None for a stage of another kind."""
    kind, _, rest = stage_name.partition("/")
    return rest.partition("/")[0] if kind == "lower" else None


def pool_of_device(device: str) -> Pool:
    """Which resources a stage takes that works on this device."""
    return "quantize" if device == "cpu" else "bench"


def data_settings(experiment: Experiment, facts: Facts) -> Settings:
    """What of the data a stage depends on: contents and choices, not where files lie; the test split is evaluate's."""
    scaled = experiment.data.name == "imagefolder" or experiment.data.name.startswith(HUB)
    ignored = {"root", "test_limit", "workers"} | (set() if scaled else {"image_size"})
    chosen = experiment.data.model_dump(mode="json", exclude=ignored)
    found = asdict(facts.data)
    return {**chosen, **{key: found[key] for key in ("digest", "classes", "inputs", "mean", "std")}}
