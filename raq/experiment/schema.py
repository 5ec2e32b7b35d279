"""The schema of the experiment: what may be asked, its defaults and its units. Imports neither torch nor ray."""

import difflib
import re
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from raq.experiment.execution import StageResources, TrackerNames
from raq.experiment.fields import (
    INCLUDED,
    Channels,
    Natural,
    Positive,
    Section,
)
from raq.experiment.fields import Half as HalfType
from raq.experiment.measurement import Bench, Lower, Parity, Require, Select
from raq.experiment.metric import LOSSES, Metric
from raq.experiment.ptq import Ptq
from raq.experiment.sweep import PTQ_METHODS, PtqSweep, Sweep
from raq.experiment.training import OF_PTQ, TO_FP32, Qat, Train
from raq.experiment.unused import refuse_unused

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
HUB = "hf:"
HUB_PATTERN = r"^hf:[A-Za-z0-9][\w.-]*(/[\w.-]+)?$"
FUNCTION_PATTERN = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$"

MODELS = ("resnet18-cifar", "resnet20-cifar")
# What executes the artifacts of a backend: inductor (an AOTInductor package, .pt2) or executorch (a .pte for phones).
ARM_ARCHITECTURES = ("aarch64", "arm64")
BASELINE = "fp32"  # the candidate that the others are compared with


class Data(Section):
    """Which images."""

    name: str = "digits"
    """digits, cifar10, imagefolder, hf:NAME (images and classes of the Hugging Face hub, from the cache or from the
    folder `root`; the extra datasets), or module:function."""
    root: str | None = None
    """Folder to look in first; relative to the experiment's file."""
    train_limit: Positive | None = None
    """Use a fixed random sample of this many training images; null: all."""
    test_limit: Positive | None = None
    """Use a fixed random sample of this many test images; null: all."""
    validation_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of the training split held out to choose the best epoch; 0 keeps the last epoch."""
    image_size: Annotated[int, Field(ge=8, le=1024)] = 224
    """Side in pixels to which the images of imagefolder and hf:NAME are scaled and cropped."""
    mean: Annotated[Channels, Field(strict=False)] | None = None
    """Mean of the normalisation by channel, of pixels / 255; null: the data set's own."""
    std: Annotated[Channels, Field(strict=False)] | None = None
    """Standard deviation of the normalisation by channel; null: the data set's own."""
    workers: Natural = 0
    """Processes that read samples ahead, for each process that reads them (of a raq.Data); 0: none."""

    @model_validator(mode="after")
    def _check(self) -> "Data":
        known = ("cifar10", "digits", "imagefolder")
        if self.name not in known and not re.match(f"{FUNCTION_PATTERN}|{HUB_PATTERN}", self.name):
            allowed = f"{', '.join(known)}, hf:NAME, module:function"
            raise ValueError(f"name: {self.name!r} is not a data set; allowed: {allowed}")
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std come together; give both or neither")
        if self.mean is not None and self.std is not None and len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} values and std {len(self.std)}: give one for each channel")
        if self.std is not None and min(self.std) <= 0:
            raise ValueError("std: every value is above 0")
        return self


class Model(Section):
    """Which network."""

    @model_validator(mode="after")
    def _check(self) -> "Model":
        if (
            self.name in MODELS
            or re.match(r"^(torchvision|timm):[\w.]+$", self.name)
            or re.match(r"^transformers:\S+$", self.name)
            or re.match(FUNCTION_PATTERN, self.name)
        ):
            return self
        near = difflib.get_close_matches(self.name, MODELS, n=1)
        also = f" (did you mean {near[0]!r}?)" if near else ""
        allowed = f"{', '.join(MODELS)}, torchvision:<name>, timm:<name>, transformers:<name>, module:function"
        raise ValueError(f"name: there is no network {self.name!r}{also}; allowed: {allowed}")

    name: str = "resnet18-cifar"
    """resnet18-cifar, resnet20-cifar, torchvision:NAME, timm:NAME, transformers:NAME (a trained one: a folder, relative
    to the experiment's file, or a name in the Hugging Face cache), or module:function. timm and transformers are
    extras."""
    weights: str | None = None
    """File with a state dict to start from (.pt, or .safetensors), instead of training; relative to the experiment's
    file. included: the function returns a trained network."""
    output: str | Natural | None = None
    """Which output is judged, where the network gives several: a key, an attribute or a number from 0."""


class Half(Section):
    """FP32's weights and activations rounded to 16 bits: what int8 has to beat. Compiled by
    Inductor, and by TensorRT if lower.runtimes has it."""

    dtypes: Annotated[tuple[HalfType, ...], Field(strict=False, min_length=1)] = ("bfloat16",)
    """Each is a candidate, bf16 or fp16. A CPU must compute in it: bfloat16 by AVX512_BF16, AMX_BF16 or Arm's bf16,
    float16 by AVX512_FP16, AMX_FP16 or Arm's asimdhp."""

    @model_validator(mode="after")
    def _check(self) -> "Half":
        if len(set(self.dtypes)) < len(self.dtypes):
            raise ValueError(f"dtypes: {list(self.dtypes)} names one twice")
        return self


class Experiment(Section):
    """One question: a model, its data, and how its candidates are made and measured."""

    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    """Letters, digits, '.', '_', '-'."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Of everything random."""
    data: Data = Data()
    model: Model = Model()
    metric: Metric = Metric()
    loss: str | None = None
    """What is trained with: cross_entropy, mse, or module:function of (output, target); null: cross_entropy for top1,
    top5 and mean_iou, mse for mse."""
    train: Train = Field(default_factory=lambda: Train.model_validate({}))
    ptq: Ptq | None = Ptq()
    qat: Qat | None = Qat()
    half: Half | None = None
    sweep: Sweep | None = None
    lower: Lower = Lower()
    parity: Parity = Parity()
    bench: Bench = Bench()
    resources: StageResources = StageResources()
    tracking: TrackerNames = ("tensorboard",)
    """Who is told how a run goes and what it came to, each in its own form, in the run's folder: tensorboard
    (`tensorboard --logdir results`), mlflow (or where MLFLOW_TRACKING_URI says), wandb (offline, unless WANDB_MODE says
    otherwise); the latter two are extras."""
    require: Require = Require()
    select: Select = Select()

    @model_validator(mode="after")
    def _check_metric(self) -> "Experiment":
        name = self.metric.function
        if not self.metric.in_points and "max_drop" not in self.require.model_fields_set:
            raise ValueError(f"require.max_drop is in the unit of the metric {name}, which has no default: set it")
        if self.loss is not None and self.loss not in LOSSES and not re.match(FUNCTION_PATTERN, self.loss):
            raise ValueError(f"loss: there is no {self.loss!r}; allowed: {', '.join(LOSSES)}, module:function")
        if self.model.weights == INCLUDED and ":" not in self.model.name:
            raise ValueError(f"model.weights is included, and {self.model.name} comes untrained: name a file")
        return self

    @model_validator(mode="after")
    def _check_select(self) -> "Experiment":
        if self.select.batch_size not in (None, *self.bench.batch_sizes):
            sizes = ", ".join(map(str, self.bench.batch_sizes))
            raise ValueError(f"select.batch_size is {self.select.batch_size}, and bench.batch_sizes has {sizes}")
        return self

    @model_validator(mode="after")
    def _check_runtimes(self) -> "Experiment":
        others = [name for name in self.lower.runtimes if name not in ("inductor", "tensorrt")]
        tools = self.ptq.others if self.ptq is not None else ()
        self._check_tensorrt()
        if self.bench.devices != "auto" and "cpu" not in self.bench.devices:
            for key, asked in (("ptq.others", ", ".join(tools)), ("bench.streams", self.bench.streams)):
                if asked:
                    devices = ", ".join(self.bench.devices)
                    raise ValueError(f"{key} has {asked}, for CPUs alone, and bench.devices has {devices}")
        if others and self.bench.devices != "auto" and "cpu" not in self.bench.devices:
            raise ValueError(
                f"lower.runtimes has {', '.join(others)}, for CPUs alone, and bench.devices has "
                f"{', '.join(self.bench.devices)}"
            )
        on_gpus = {"inductor", "tensorrt"} & set(self.lower.runtimes)
        if not on_gpus and self.bench.devices != "auto" and "cuda" in self.bench.devices:
            raise ValueError(
                f"bench.devices has cuda, and lower.runtimes has {', '.join(others)}, for CPUs alone: add inductor"
            )
        return self

    def _check_tensorrt(self) -> None:
        if "tensorrt" not in self.lower.runtimes:
            return
        if self.bench.devices != "auto" and "cuda" not in self.bench.devices:
            devices = ", ".join(self.bench.devices)
            raise ValueError(f"lower.runtimes has tensorrt, for GPUs alone, and bench.devices has {devices}: add cuda")
        if set(self.lower.runtimes) == {"tensorrt"} and self.bench.devices != ("cuda",):
            raise ValueError(
                "lower.runtimes has tensorrt, for GPUs alone: add inductor, for CPUs, or set bench.devices to [cuda]"
            )

    @model_validator(mode="after")
    def _check_modes(self) -> "Experiment":
        modes = self.ptq.mode if self.ptq is not None else ("static",)
        others = [mode for mode in modes if mode != "static"]
        if others and "inductor" not in self.lower.runtimes:
            raise ValueError(f"ptq.mode has {', '.join(others)}, which Inductor alone runs: add it to lower.runtimes")
        if others and self.bench.devices != "auto" and "cpu" not in self.bench.devices:
            raise ValueError(f"ptq.mode has {', '.join(others)}, for CPUs alone: add cpu to bench.devices")
        tried = self.sweep is not None and (self.sweep.ptq is not None or self.sweep.layers is not None)
        if tried and "static" not in modes:
            raise ValueError("sweep.ptq and sweep.layers are of the mode static, which ptq.mode has not")
        return self

    @model_validator(mode="after")
    def _check_batches(self) -> "Experiment":
        largest = max(self.bench.batch_sizes)
        phones = any(part and part.backend == "xnnpack" for part in (self.ptq, self.qat))
        if (phones or "tensorrt" in self.lower.runtimes) and largest > self.lower.max_batch:
            raise ValueError(
                f"lower.max_batch is {self.lower.max_batch}, and bench.batch_sizes has {largest}: "
                f"{'a .pte' if phones else 'an engine'} takes no more than it was made for"
            )
        return self

    @model_validator(mode="after")
    def _check_unused(self) -> "Experiment":
        refuse_unused(self.ptq, self.qat, self.sweep)
        return self

    @model_validator(mode="after")
    def _check_sweep(self) -> "Experiment":
        sweep = self.sweep
        if sweep is None:
            return self
        for name, tried in (("ptq", sweep.ptq), ("ptq", sweep.layers), ("qat", sweep.qat)):
            if tried is not None and getattr(self, name) is None:
                key = "layers" if tried is sweep.layers else name
                raise ValueError(
                    f"sweep.{key} is of the candidate {name}, and {name} is null: leave one of the two out"
                )
        if sweep.layers is not None and self.ptq is not None and self.ptq.backend == "xnnpack":
            raise ValueError(
                "sweep.layers leaves layers in float, which the backend xnnpack does not do yet; leave it out"
            )
        if self.data.validation_fraction == 0:
            raise ValueError("data.validation_fraction is 0, and sweep compares its trials on validation images")
        if sweep.ptq is not None and self.ptq is not None:
            _check_ptq_sweep(self.ptq, sweep.ptq)
            observers = sweep.ptq.observers or (self.ptq.calibration.observer,)
            if sweep.ptq.percentiles and "percentile" not in observers:
                raise ValueError("sweep.ptq.calibration.percentile is of the percentile observer, which is not tried")
        if sweep.qat is not None and self.qat is not None:
            _check_qat_sweep(self.qat, sweep.qat.space)
        return self


def _check_ptq_sweep(ptq: Ptq, sweep: PtqSweep) -> None:
    """ValueError if trials of this sweep could not be done."""
    equalizes = ptq.effort != "fast" or {*(sweep.equalization or [ptq.equalization])} != {"none"}
    if equalizes and False in sweep.per_channel:
        raise ValueError(
            "sweep.ptq.per_channel tries false, and equalization takes weights with a scale for each channel: leave "
            "false out, or set ptq.effort to fast and equalization, in ptq and sweep.ptq, to none"
        )
    as_swept = ptq.model_copy(update={"per_channel": sweep.per_channel[0]}) if sweep.per_channel else ptq
    for key in (*PTQ_METHODS, "reduce_range"):
        for value in getattr(sweep, key):
            _refuse_value("ptq", as_swept, key, value)


def _check_qat_sweep(qat: Qat, space: dict[str, Any]) -> None:
    """ValueError if trainings of this sweep could not be done."""
    if not isinstance(qat.workers, int):
        raise ValueError("qat.workers is a range, and trials of sweep.qat have a fixed number; give one number")
    mixed = [next((key for key in keys if key in space), None) for keys in (TO_FP32, OF_PTQ)]
    if None not in mixed:
        raise ValueError(
            f"sweep.qat.{mixed[0]} is tried where training starts from fp32, and {mixed[1]} where it starts from ptq: "
            "leave one of them out"
        )
    for key, tried in space.items():
        for value in tried if isinstance(tried, list) else next(iter(tried.values())):
            _refuse_value("qat", qat, key, value)


def _refuse_value(name: str, part: Ptq | Qat, key: str, value: Any) -> None:
    """ValueError if `ptq` or `qat` would not take this value of a key."""
    try:
        type(part).model_validate({**part.model_dump(exclude_unset=True), key: value})
    except ValidationError as error:
        said = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
        said = said.replace("Input should be", "it should be")
        raise ValueError(f"sweep.{name}.{key} has {value!r}; {said}") from None
