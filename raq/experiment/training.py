"""The schema of `train` and `qat`: how a network is trained. Imports neither torch nor ray."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from raq.experiment.fields import Backend, Positive, Section, Share

# The values of each recipe; keys set in the experiment win over them. None: as `Optimisation.for_samples` says.
RECIPES: dict[str, dict[str, Any]] = {
    "published": {
        "epochs": 15,
        "batch_size": 128,
        "lr": 0.01,
        "momentum": 0.9,
        "nesterov": False,
        "weight_decay": 0.0,
        "schedule": "constant",
        "label_smoothing": 0.0,
        "augment": False,
        "progressive": (),
        "initialisation": "given",
        "batch_norm_samples": 0,
        "precision": "float32",
        "channels_last": False,
        "average": 0.0,
    },
    "fast": {
        "epochs": 15,
        "batch_size": None,
        "lr": None,
        "momentum": 0.9,
        "nesterov": True,
        "weight_decay": 5e-4,
        "schedule": "one-cycle",
        "label_smoothing": 0.1,
        "augment": None,
        "progressive": None,
        "initialisation": "rescaled",
        "batch_norm_samples": 2048,
        "precision": None,
        "channels_last": None,
        "average": 0.0,
    },
}
PEAK_LR, LARGEST_BATCH, SMALLEST_BATCH = 0.12, 128, 16  # of the recipe fast
LR_POWER = 0.75  # between the root of the batch size (Krizhevsky 2014) and its share (Goyal et al. 2017)
ENOUGH_STEPS = 64  # an epoch, of the batch size that is chosen
GROWING = (0.5, 0.75, 1.0)  # image sides of the recipe fast, of large data
LARGE_DATA = 10_000  # training samples, from which on smaller images first pay, and measuring how steps are computed
WorkerCount = Annotated[int, Field(ge=1, le=1024)]
# keys of `qat` that are of one start alone
OF_FP32 = (
    "freeze_observers_after", "freeze_bn_after", "lr", "optimizer", "momentum", "nesterov", "weight_decay",
)  # fmt: skip
OF_PTQ = ("weight_lr", "scale_lr")
TO_FP32 = (*OF_FP32, "label_smoothing")  # that make start: fp32 the default where they are set
Precision = Literal["float32", "bfloat16"]
Workers = WorkerCount | Annotated[tuple[WorkerCount, WorkerCount], Field(strict=False)]


class Optimisation(Section):
    """What FP32 and quantization-aware training have in common."""

    epochs: Positive
    """Passes over the training images."""
    batch_size: Positive | None = None
    """Samples per optimiser step, over all workers together; null: 128, and less of small data, down to 16, so that an
    epoch has 64 steps."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """sgd: with momentum; adamw: Adam with decoupled weight decay, which transformers and tables like better."""
    lr: Annotated[float, Field(gt=0, le=100)] | None
    """Learning rate; with one-cycle and cosine, its peak. null: 0.12 times (batch_size / 128) to the power of
    0.75; of adamw a hundredth of that."""
    momentum: Annotated[float, Field(ge=0, lt=1)]
    """SGD's momentum; AdamW's first beta."""
    nesterov: bool
    """Nesterov's momentum, of sgd."""
    weight_decay: Annotated[float, Field(ge=0, le=1)]
    """L2 penalty, on parameters of two axes or more (not on biases or normalisation)."""
    schedule: Literal["constant", "one-cycle", "cosine"]
    """Learning rate over the steps. constant; one-cycle: linear warm-up over the first fifth, then linearly to 0;
    cosine: cosine decay to 0."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]
    """Of the cross-entropy."""
    augment: bool | None
    """Flip, of half of the images and in the next epoch of the others, and random crop out of the padded image; null:
    unless data.name is digits, which a flip or a crop makes another."""
    progressive: Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Field(strict=False)] | None
    """Image sides, as shares of the full side, through which the epochs go in order; []: full size; null: 0.5, 0.75, 1
    from 10,000 training images on."""
    precision: Precision | None
    """Of the arithmetic of a training step; weights and evaluation are float32. null: whichever is faster by a tenth,
    in a few steps before the first epoch, from 10,000 training samples on; else float32."""
    channels_last: bool | None
    """Whether images lie in memory with their channels last; null: as `precision`, else false."""
    average: Annotated[float, Field(ge=0, le=1)] | None
    """Evaluated and kept are exponential averages of the weights, over about this share of all steps (Polyak and
    Juditsky 1992; Izmailov et al. 2018); 0: the weights themselves."""
    workers: Workers = 1
    """Data-parallel workers. 1: in one actor; more: by Ray Train. [least, most]: elastic, the number changes as nodes
    join or leave."""

    def for_samples(self, count: int, *, digits: bool = False) -> Self:
        """These settings with what is left to the data filled in, for `count` training samples."""
        workers = self.workers if isinstance(self.workers, int) else self.workers[1]
        batch, lr = self.batch_size, self.lr
        if batch is None:
            batch = LARGEST_BATCH
            while batch // 2 >= max(SMALLEST_BATCH, 2 * workers) and count // batch < ENOUGH_STEPS:
                batch //= 2
        if lr is None:
            lr = PEAK_LR * (batch / LARGEST_BATCH) ** LR_POWER * (0.01 if self.optimizer == "adamw" else 1.0)
        found: dict[str, Any] = {"batch_size": batch, "lr": lr}
        found["augment"] = not digits if self.augment is None else self.augment
        small = count < LARGE_DATA
        found["progressive"] = (() if small else GROWING) if self.progressive is None else self.progressive
        return self.model_copy(update=found)

    @property
    def samples_per_step(self) -> int:
        """batch_size, where it is a number: what `for_samples` gives."""
        assert self.batch_size is not None
        return self.batch_size

    @property
    def share_averaged(self) -> float:
        """`average`, or what null stands for."""
        return self.average or 0.0

    @property
    def peak_lr(self) -> float:
        """lr, where it is a number: what `for_samples` gives."""
        assert self.lr is not None
        return self.lr

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
    grew from; fast: augmentation, one-cycle, smaller images first, all as the data allow."""
    initialisation: Literal["given", "rescaled"]
    """given: as the network is made; rescaled: where next to nothing of its signal reaches the last layer, layers are
    scaled to give a standard deviation of 1 on a first batch (Mishkin and Matas 2016, without the orthogonal start);
    where the loss of that batch is far above (1.25 times) that of outputs of zeros, the last layer is scaled down."""
    batch_norm_samples: Annotated[int, Field(ge=0)]
    """Batch norm's running statistics are taken anew before each evaluation, on so many training samples of full size
    (Wu and Johnson 2021); 0: as training left them, averages that after few steps still hold where they began."""

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
    """Quantization-aware training."""

    start: Literal["ptq", "fp32"] = "ptq"
    """ptq: the graph that PTQ ended with, its scales learning with the weights (LSQ), batch norms folded, nothing
    dropped; where the candidate ptq is of another backend, or there is none, one that is calibrated for it. fp32: the
    FP32 weights, ranges observed meanwhile, batch norms going on. It is fp32 where it is not set and one of these keys
    is, here or in sweep.qat: lr, optimizer, momentum, nesterov, weight_decay, label_smoothing,
    freeze_observers_after, freeze_bn_after."""
    backend: Backend = "x86"
    """Whose int8 kernels the graph is annotated for. x86, arm: Inductor's; xnnpack: ExecuTorch's, needs its extra;
    cuda: raq's own for GPUs, which have not been run on one yet."""
    epochs: Positive = 3
    """Passes over the training images."""
    lr: Annotated[float, Field(gt=0, le=100)] | None = 0.0005
    """Of start: fp32: learning rate; with one-cycle and cosine, its peak."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Of start: fp32: SGD's momentum."""
    nesterov: bool = True
    """Of start: fp32: Nesterov's momentum."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Of start: fp32: L2 penalty, as in `train`."""
    schedule: Literal["constant", "one-cycle", "cosine"] = "cosine"
    """As in `train`."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Of the cross-entropy."""
    augment: bool | None = None
    """As in `train`."""
    progressive: Annotated[tuple[float, ...], Field(strict=False, max_length=0)] | None = ()
    """Always []: an exported graph has one image size."""
    precision: Literal["float32"] = "float32"
    """Always float32: rounding to integers is what is trained for."""
    channels_last: bool | None = False
    """As in `train`; trials of a sweep and a training that is done again compute alike where it is not null."""
    average: Annotated[float, Field(ge=0, le=1)] | None = None
    """As in `train`; null: 0.1 with start: ptq, 0 with fp32."""
    weight_lr: Annotated[float, Field(ge=0, le=10)] = 0.02
    """Of start: ptq: learning rate of weights, by Adam, in the integers that they are rounded to."""
    scale_lr: Annotated[float, Field(ge=0, le=1)] = 0.001
    """Of start: ptq: learning rate of the logarithms of scales, by Adam."""
    freeze_observers_after: Annotated[float, Field(ge=0)] | None = None
    """Of start: fp32: epochs, fractions allowed, after which observers (activation ranges) are frozen; null: two thirds
    of the epochs."""
    freeze_bn_after: Annotated[float, Field(ge=0)] | None = None
    """Of start: fp32: epochs after which batch normalisation uses its running statistics; null: half of the epochs."""
    distillation: Share | None = None
    """Share of the loss that is the KL divergence from the FP32 network, the teacher (of outputs that are not of
    classes, the squared distance); the rest is the loss of training. null: 1 with start: ptq, 0 with fp32."""
    temperature: Annotated[float, Field(ge=1, le=100)] = 4.0
    """Temperature of the softmax of teacher and student in that divergence."""

    @model_validator(mode="before")
    @classmethod
    def _fill_start(cls, given: Any) -> Any:
        if isinstance(given, dict) and "start" not in given and any(key in given for key in TO_FP32):
            return {**given, "start": "fp32"}
        return given

    @model_validator(mode="after")
    def _check_start(self) -> "Qat":
        defaults = type(self).model_fields
        others, of, instead = (OF_FP32, "fp32", OF_PTQ) if self.start == "ptq" else (OF_PTQ, "ptq", ("lr",))
        for key in others:
            if getattr(self, key) != defaults[key].default:
                raise ValueError(
                    f"{key} is of start: {of}, and this training starts from {self.start}: leave it out (what there is "
                    f"instead: {' and '.join(instead)}), or set start"
                )
        if self.label_smoothing and self.share_distilled == 1:
            raise ValueError(
                "label_smoothing is of targets, and distillation: 1 learns from none: set one below 1, or 0"
            )
        return self

    @property
    def share_averaged(self) -> float:
        """`average`, or what null stands for."""
        return self.average if self.average is not None else (0.1 if self.start == "ptq" else 0.0)

    @property
    def share_distilled(self) -> float:
        """`distillation`, or what null stands for."""
        if self.distillation is not None:
            return self.distillation
        return 1.0 if self.start == "ptq" else 0.0
