"""The schema of the experiment: what may be asked, its defaults and its units.

The file's text becomes a frozen `Experiment`, or a `UserError` that names the key, its line, what is
allowed and what to do next. Imports neither torch nor ray.
"""

import difflib
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from raq.errors import UserError
from raq.yaml_text import Location, read_yaml_text, read_yaml_value

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
FUNCTION_PATTERN = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$"

MODELS = ("resnet18-cifar", "resnet20-cifar")
Positive = Annotated[int, Field(ge=1, le=10**9)]
Natural = Annotated[int, Field(ge=0, le=10**9)]
BatchSize = Annotated[int, Field(ge=1, le=65_536)]
Share = Annotated[float, Field(ge=0, le=1)]
Channels = tuple[float, float, float]

PATHS = (("data", "root"), ("model", "weights"))

# What a recipe sets; any key written in the experiment wins over its recipe.
RECIPES: dict[str, dict[str, Any]] = {
    "published": {
        "epochs": 15,
        "lr": 0.01,
        "momentum": 0.9,
        "nesterov": False,
        "weight_decay": 0.0,
        "schedule": "constant",
        "label_smoothing": 0.0,
        "augment": False,
        "progressive": (),
    },
    "fast": {
        "epochs": 15,
        "lr": 0.12,
        "momentum": 0.9,
        "nesterov": True,
        "weight_decay": 5e-4,
        "schedule": "one-cycle",
        "label_smoothing": 0.1,
        "augment": True,
        "progressive": (0.5, 0.75, 1.0),
    },
}


class Section(BaseModel):
    """A part of the experiment: frozen, strict about types, and refusing keys that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Data(Section):
    """Which images."""

    name: str = "digits"
    """cifar10 | digits | imagefolder | module:function"""
    root: str | None = None
    """Folder to look in first; relative to the experiment's file."""
    train_limit: Positive | None = None
    """Use a fixed random sample of this many training images; null: all."""
    test_limit: Positive | None = None
    """Use a fixed random sample of this many test images; null: all."""
    validation: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of the training split held out to choose the best epoch; 0 keeps the last epoch."""
    image_size: Annotated[int, Field(ge=8, le=1024)] = 224
    """Side in pixels to which imagefolder's images are scaled and cropped."""
    mean: Annotated[Channels, Field(strict=False)] | None = None
    """Mean of the normalisation by channel, of pixels / 255; null: the data set's own."""
    std: Annotated[Channels, Field(strict=False)] | None = None
    """Standard deviation of the normalisation by channel; null: the data set's own."""

    @model_validator(mode="after")
    def _check(self) -> "Data":
        known = ("cifar10", "digits", "imagefolder")
        if self.name not in known and not re.match(FUNCTION_PATTERN, self.name):
            raise ValueError(f"name: {self.name!r} is not a data set; allowed: {', '.join(known)}, module:function")
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std come together; give both or neither")
        if self.std is not None and min(self.std) <= 0:
            raise ValueError("std: every value is above 0")
        return self


class Model(Section):
    """Which network."""

    @model_validator(mode="after")
    def _check(self) -> "Model":
        if self.name in MODELS or re.match(r"^torchvision:\w+$", self.name) or re.match(FUNCTION_PATTERN, self.name):
            return self
        near = difflib.get_close_matches(self.name, MODELS, n=1)
        also = f" (did you mean {near[0]!r}?)" if near else ""
        allowed = f"{', '.join(MODELS)}, torchvision:<name>, module:function"
        raise ValueError(f"name: there is no network {self.name!r}{also}; allowed: {allowed}")

    name: str = "resnet18-cifar"
    """resnet18-cifar | resnet20-cifar | torchvision:<name> | module:function"""
    weights: str | None = None
    """File with a state dict to start from, instead of training; relative to the experiment's file."""


class Optimisation(Section):
    """What FP32 and quantization-aware training have in common."""

    epochs: Positive
    """Passes over the training images."""
    batch_size: Positive = 128
    """Images an optimiser step, over all workers together."""
    lr: Annotated[float, Field(gt=0, le=100)]
    """Learning rate; with one-cycle and cosine, its peak."""
    momentum: Annotated[float, Field(ge=0, lt=1)]
    """Of SGD."""
    nesterov: bool
    """Nesterov's momentum."""
    weight_decay: Annotated[float, Field(ge=0, le=1)]
    """L2 penalty, on matrices and kernels only (not on biases or normalisation)."""
    schedule: Literal["constant", "one-cycle", "cosine"]
    """Learning rate over the steps: constant; up for a fifth then down to 0; cosine down to 0."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]
    """Of the cross-entropy."""
    augment: bool
    """Random flip, and random crop out of the padded image."""
    progressive: Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Field(strict=False)]
    """Image sides, as shares of the full side, through which the epochs go in order; []: full size."""

    @model_validator(mode="after")
    def _check_momentum(self) -> "Optimisation":
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0; set nesterov: false")
        return self


class Train(Optimisation):
    """FP32 training."""

    recipe: Literal["fast", "published"] = "fast"
    """Where the keys below that are not written come from."""
    workers: Annotated[int, Field(ge=1, le=1024)] = 1
    """Data-parallel workers; one trains in one actor, more through Ray Train."""

    @model_validator(mode="before")
    @classmethod
    def _fill_from_recipe(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        recipe = given.get("recipe", "fast")
        named = recipe if isinstance(recipe, str) and recipe in RECIPES else "fast"  # a wrong one is refused as such
        return {**RECIPES[named], **given}


class Calibration(Section):
    """How activation ranges are found."""

    size: Positive = 256
    """Images of the training split."""
    observer: Literal["histogram", "minmax", "moving-average", "percentile"] = "histogram"
    """What watches the activations. percentile: clips to `percentile` of them."""
    percentile: Annotated[float, Field(gt=50, le=100)] = 99.99
    """Of the percentile observer: the share in percent of activations that the range covers, on either side."""
    batch_size: Positive = 32
    """Images a forward pass."""


class Ptq(Section):
    """Quantization after training."""

    backend: Literal["x86"] = "x86"
    """Whose int8 kernels the graph is annotated for."""
    calibration: Calibration = Calibration()


class Qat(Optimisation):
    """Quantization-aware training, from the FP32 weights."""

    backend: Literal["x86"] = "x86"
    """Whose int8 kernels the graph is annotated for."""
    epochs: Positive = 3
    lr: Annotated[float, Field(gt=0, le=100)] = 0.0005
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = True
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    schedule: Literal["constant", "one-cycle", "cosine"] = "cosine"
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    augment: bool = True
    progressive: Annotated[tuple[float, ...], Field(strict=False, max_length=0)] = ()
    """Always []: an exported graph has one image size."""
    freeze_observers_after: Annotated[float, Field(ge=0)] | None = None
    """Epochs (a fraction will do) after which activation ranges stand; null: two thirds of the epochs."""
    freeze_bn_after: Annotated[float, Field(ge=0)] | None = None
    """Epochs after which batch normalisation uses its running statistics; null: half of the epochs."""
    workers: Annotated[int, Field(ge=1, le=1024)] = 1
    """Data-parallel workers; one trains in one actor, more through Ray Train."""


class Lower(Section):
    """Compilation into what is deployed."""

    runtimes: Annotated[tuple[Literal["inductor"], ...], Field(strict=False, min_length=1)] = ("inductor",)
    """inductor: an AOTInductor package that runs with torch alone."""


class Bench(Section):
    """How latency is measured."""

    devices: Literal["auto"] | Annotated[tuple[Literal["cpu", "cuda"], ...], Field(strict=False, min_length=1)] = "auto"
    """auto: those that the cluster has."""
    batch_sizes: Annotated[tuple[BatchSize, ...], Field(strict=False, min_length=1)] = (1, 128)
    """Images a call, each size once; artifacts take at most 65,536."""
    threads: Positive | None = None
    """Intra-op threads; null: the CPUs of the bench actor."""
    warmup: Natural = 5
    """Calls a contender and batch size before the first timed one; the very first is reported apart."""
    rounds: Positive = 12
    """Rounds; in each, every contender is timed once, in alternating order."""
    repetitions: Positive = 3
    """Timed calls a contender and round, at least."""
    round_ms: Annotated[float, Field(ge=0, le=60_000)] = 100.0
    """Milliseconds of timed calls a contender and round, at least."""

    @model_validator(mode="after")
    def _check(self) -> "Bench":
        if len(set(self.batch_sizes)) < len(self.batch_sizes):
            raise ValueError(f"batch_sizes: {list(self.batch_sizes)} names a size twice")
        return self


class Resources(Section):
    """What one worker or actor of a kind of stage is given."""

    cpus: Positive | None = None
    """CPUs; null: all of a node (for training: an equal share of them a worker)."""
    gpus: Natural = 0
    """GPUs."""


class StageResources(Section):
    """What each kind of stage is given."""

    train: Resources = Resources()
    quantize: Resources = Resources()
    bench: Resources = Resources()


class Parity(Section):
    """The proof that each step from FP32 to the saved artifact computes what the step before it computed."""

    images: Positive | None = 100
    """Test images on which the steps are compared (a fixed random sample); null: all of them."""


class Require(Section):
    """What a candidate must reach."""

    sqnr_db: Annotated[float, Field(ge=-100, le=200)] = 5.0
    """Signal-to-quantization-noise ratio of the logits, in dB, that converting to integers must leave."""

    int8_mac_share: Share = 0.95
    """Share of the multiply-accumulates that the lowered program does in int8; below it, lowering fails."""
    max_drop: Annotated[float, Field(ge=0, le=100)] = 1.0
    """Points of top-1 that a candidate may lose and still be chosen."""


class Experiment(Section):
    """One question: a model, its data, and how its candidates are made and measured."""

    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    """Letters, digits, '.', '_', '-'."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Of everything random."""
    data: Data = Data()
    model: Model = Model()
    train: Train = Field(default_factory=lambda: Train.model_validate({}))
    ptq: Ptq | None = Ptq()
    qat: Qat | None = Qat()
    lower: Lower = Lower()
    parity: Parity = Parity()
    bench: Bench = Bench()
    resources: StageResources = StageResources()
    require: Require = Require()

    @property
    def candidates(self) -> tuple[str, ...]:
        """Names of the candidates, the baseline first."""
        return ("fp32", *(["ptq"] if self.ptq else []), *(["qat"] if self.qat else []))


def load_experiment(path: Path, overrides: Sequence[str] = ()) -> Experiment:
    """The experiment in the YAML file `path`, with `--set` overrides such as "train.epochs=1" applied.

    Relative paths (data.root, model.weights) come back absolute: the file's against its folder, an override's against
    the working directory.
    Raises UserError for anything that is not a valid experiment.
    """
    tree, lines = read_yaml_text(path)
    if not isinstance(tree, dict):
        raise UserError(
            f"{path}: an experiment is a mapping of keys, this is {_kind(tree)}",
            "start with 'name: my-experiment'; see experiments/quickstart.yaml",
        )
    for override in overrides:
        _apply_override(tree, lines, override)
    try:
        experiment = Experiment.model_validate(tree)
    except ValidationError as error:
        raise _explain(error.errors(include_url=False), tree, lines, path) from None
    return _with_absolute_paths(experiment, path.resolve().parent)


def _with_absolute_paths(experiment: Experiment, folder: Path) -> Experiment:
    """The experiment with data.root and model.weights made absolute against `folder`."""
    data, model = experiment.data, experiment.model
    if data.root is not None:
        data = data.model_copy(update={"root": _absolute(data.root, folder, "data.root")})
    if model.weights is not None:
        model = model.model_copy(update={"weights": _absolute(model.weights, folder, "model.weights")})
    return experiment.model_copy(update={"data": data, "model": model})


def _absolute(path: str, folder: Path, key: str) -> str:
    try:
        return str((folder / Path(path).expanduser()).resolve())
    except (ValueError, RuntimeError, OSError) as error:
        raise UserError(f"{key} is {_short(path)}, which is no path: {error}", f"correct {key}") from None


def _apply_override(tree: dict[str, Any], lines: dict[Location, str], override: str) -> None:
    """Write one "a.b=value" into the tree; the value is read as YAML."""
    key, equals, text = override.partition("=")
    parts = tuple(key.strip().split("."))
    if not equals or not all(parts):
        raise UserError(f"--set {override!r} is not KEY=VALUE", "write it like --set train.epochs=1")
    at = tree
    for part in parts[:-1]:
        if at.get(part) is None:
            at[part] = {}
        if not isinstance(at[part], dict):
            raise UserError(f"--set {override!r}: {part} is not a section", "see the keys in the experiment's file")
        at = at[part]
    value = read_yaml_value(text, f"--set {override}")
    if parts in PATHS and isinstance(value, str):  # on the command line a path is relative to where one stands
        value = _absolute(value, Path.cwd(), f"--set {key}")
    at[parts[-1]] = value
    lines[parts] = f"--set {override}"


def _explain(errors: list[ErrorDetails], tree: dict[str, Any], lines: dict[Location, str], path: Path) -> UserError:
    """The first problem of a validation, as one line with the place in the file."""
    error = errors[0]
    where = _in_tree(error["loc"], tree)
    key = ".".join(str(part) for part in where) or "the experiment"
    place = next((lines[where[:n]] for n in range(len(where), 0, -1) if where[:n] in lines), str(path))
    kind, context, value = error["type"], error.get("ctx", {}), error["input"]
    if kind == "extra_forbidden":
        allowed = _allowed_keys(where[:-1])
        near = difflib.get_close_matches(str(where[-1]), allowed, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        return UserError(f"{place}: unknown key {key!r}", f"{hint}allowed here: {', '.join(allowed)}")
    if kind == "missing" and not isinstance(value, (tuple, list)):
        return UserError(f"{place}: {key} is missing", f"add '{key}: ...'")
    if isinstance(value, float) and not math.isfinite(value):
        return UserError(f"{place}: {key} is {value}, and must be a finite number", "give a number")
    if kind == "value_error":
        message = str(context["error"])
        section = f"{key}." if where else ""
        return UserError(f"{place}: {section}{message}", "correct it there")
    if kind == "string_pattern_mismatch":
        return UserError(
            f"{place}: {key} is {_short(value)}; a name is letters, digits, '.', '_' and '-', not a path",
            "choose another name",
        )
    alternatives = [e["msg"] for e in errors if _in_tree(e["loc"], tree)[: len(where)] == where]
    message = " or ".join(dict.fromkeys(text.removeprefix("Input should be ") for text in alternatives))
    return UserError(f"{place}: {key} is {_short(value)}; it should be {message}", f"correct {key}")


def _in_tree(location: Sequence[int | str], tree: Any) -> Location:
    """The part of pydantic's location that stands in the file (it adds the names of union members)."""
    where: list[int | str] = []
    at: Any = tree
    for n, part in enumerate(location):
        inside = part in at if isinstance(at, dict) else isinstance(at, list) and part in range(len(at))
        last = n == len(location) - 1
        if inside or (last and isinstance(at, dict)):
            where.append(part)
            at = at[part] if inside else None
    return tuple(where)


def _allowed_keys(where: Sequence[int | str]) -> list[str]:
    """The keys of the section at `where`."""
    section: type[BaseModel] = Experiment
    for part in where:
        annotation = section.model_fields[str(part)].annotation
        options = [annotation, *getattr(annotation, "__args__", ())]
        section = next(o for o in options if isinstance(o, type) and issubclass(o, BaseModel))
    return list(section.model_fields)


def _kind(value: Any) -> str:
    return "empty" if value is None else f"a {type(value).__name__}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
