"""The schema of `train` and `qat`: how a network is trained. Imports neither torch nor ray."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from raq.experiment.fields import Backend, Positive, Section, Share

# The values of each recipe; keys set in the experiment win over them.
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
WorkerCount = Annotated[int, Field(ge=1, le=1024)]
Workers = WorkerCount | Annotated[tuple[WorkerCount, WorkerCount], Field(strict=False)]


class Optimisation(Section):
    """What FP32 and quantization-aware training have in common."""

    epochs: Positive
    """Passes over the training images."""
    batch_size: Positive = 128
    """Images per optimiser step, over all workers together."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """sgd: with momentum; adamw: Adam with decoupled weight decay, which transformers and tables like better."""
    lr: Annotated[float, Field(gt=0, le=100)]
    """Learning rate; with one-cycle and cosine, its peak."""
    momentum: Annotated[float, Field(ge=0, lt=1)]
    """SGD's momentum; AdamW's first beta."""
    nesterov: bool
    """Nesterov's momentum, of sgd."""
    weight_decay: Annotated[float, Field(ge=0, le=1)]
    """L2 penalty, on matrices and kernels only (not on biases or normalisation)."""
    schedule: Literal["constant", "one-cycle", "cosine"]
    """Learning rate over the steps. constant; one-cycle: linear warm-up over the first fifth, then linearly to 0;
    cosine: cosine decay to 0."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]
    """Of the cross-entropy."""
    augment: bool
    """Random flip, and random crop out of the padded image."""
    progressive: Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Field(strict=False)]
    """Image sides, as shares of the full side, through which the epochs go in order; []: full size."""
    workers: Workers = 1
    """Data-parallel workers. 1: in one actor; more: by Ray Train. [least, most]: elastic, the number changes as nodes
    join or leave."""

    @model_validator(mode="after")
    def _check_momentum(self) -> "Optimisation":
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0; set nesterov: false")
        return self

    @model_validator(mode="after")
    def _check_workers(self) -> "Optimisation":
        if isinstance(self.workers, int):
            return self
        least, most = self.workers
        if least > most:
            raise ValueError(f"workers: [{least}, {most}] is [most, least]; allowed: [least, most]")
        return self


class Train(Optimisation):
    """FP32 training."""

    recipe: Literal["fast", "published"] = "fast"
    """Preset that supplies the value of every key that is not set in `train`. published: that of the code which raq
    grew from; fast: augmentation, one-cycle, smaller images first."""

    @model_validator(mode="before")
    @classmethod
    def _fill_from_recipe(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        recipe = given.get("recipe", "fast")
        named = (
            recipe if isinstance(recipe, str) and recipe in RECIPES else "fast"
        )  # an unknown one is refused by its own field
        return {**RECIPES[named], **given}


class Qat(Optimisation):
    """Quantization-aware training, from the FP32 weights."""

    backend: Backend = "x86"
    """Whose int8 kernels the graph is annotated for. x86, arm: Inductor's; xnnpack: ExecuTorch's, needs its extra."""
    epochs: Positive = 3
    """Passes over the training images."""
    lr: Annotated[float, Field(gt=0, le=100)] = 0.0005
    """Learning rate; with one-cycle and cosine, its peak."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """SGD's momentum."""
    nesterov: bool = True
    """Nesterov's momentum."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    """L2 penalty, on matrices and kernels only."""
    schedule: Literal["constant", "one-cycle", "cosine"] = "cosine"
    """As in `train`."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Of the cross-entropy."""
    augment: bool = True
    """Random flip, and random crop out of the padded image."""
    progressive: Annotated[tuple[float, ...], Field(strict=False, max_length=0)] = ()
    """Always []: an exported graph has one image size."""
    freeze_observers_after: Annotated[float, Field(ge=0)] | None = None
    """Epochs, fractions allowed, after which observers (activation ranges) are frozen; null: two thirds of the
    epochs."""
    freeze_bn_after: Annotated[float, Field(ge=0)] | None = None
    """Epochs after which batch normalisation uses its running statistics; null: half of the epochs."""
    distillation: Share = 0.0
    """Share of the loss that is the KL divergence from the FP32 network, the teacher; the rest is the cross-entropy."""
    temperature: Annotated[float, Field(ge=1, le=100)] = 4.0
    """Temperature of the softmax of teacher and student in that divergence."""
