"""The schema of `ptq`: how a network is quantized after training. Imports neither torch nor ray."""

from typing import Annotated

from pydantic import BeforeValidator, Field, model_validator

from raq.experiment.fields import Backend, Effort, Extent, Mode, Observer, OtherTool, Positive, RoundingSteps, Section


class Calibration(Section):
    """How activation ranges are found."""

    size: Positive = 256
    """Images of the training split (rounding is learned from more: `ptq.learned_rounding`)."""
    observer: Observer = "histogram"
    """What watches the activations. histogram: the range whose rounding has the least squared error; minmax: all that
    was seen; moving-average: the first batch's extremes, moved by 1% of the way to those of each batch after it;
    percentile: clips to `percentile` of them; entropy: the range whose rounding changes the distribution least, by the
    Kullback-Leibler divergence (Migacz 2017, 8-bit Inference with TensorRT), at least an eighth of what was seen."""
    percentile: Annotated[float, Field(gt=50, le=100)] = 99.99
    """Of the percentile observer: the share in percent of activations that the range covers, on either side."""
    batch_size: Positive = 32
    """Images a forward pass."""


class Ptq(Section):
    """Quantization after training."""

    mode: Annotated[
        tuple[Mode, ...],
        Field(strict=False, min_length=1),
        BeforeValidator(lambda given: (given,) if isinstance(given, str) else given),
    ] = ("static",)
    """One, or a list of several, each a candidate of its own. static (candidate ptq): activations have fixed ranges,
    from calibration. dynamic: the range of an activation is that of the batch at hand, so that an answer depends a
    little on the batch that it comes in. weight-only: linear layers multiply int8 weights with bfloat16. These two are
    of linear layers and embeddings alone, and in Inductor on x86."""
    backend: Backend = "x86"
    """Whose int8 kernels the graph is annotated for. x86, arm: Inductor's; xnnpack: ExecuTorch's, needs its extra;
    cuda: raq's own for GPUs, which have not been run on one yet."""
    per_channel: bool = True
    """Weights have a scale for each output channel; false: one for each tensor (on Arm always)."""
    reduce_range: bool | None = None
    """Activations of 7 bits, so that int8 kernels of x86 without VNNI cannot saturate; null: where there is no VNNI."""
    calibration: Calibration = Calibration()
    effort: Effort = "fast"
    """Of the mode static and the backend x86. fast: as the other keys say. better: then the observers entropy and
    moving-average, equalization that folds, bias correction and equalization by multiplications are tried, one after
    the other; best: learned rounding too, before the last. Each is kept if it brings the outputs on validation
    samples, of classes the probabilities, nearer to FP32's (by 0.1 dB of SQNR, the last by 0.5, as it takes time at
    every call), and the next is tried unless the drop there is shown to be within select.margin.accuracy."""
    equalization: Extent = "none"
    """Of the backend x86: give the channels of layers' inputs ranges alike, their weights the factors (cross-layer
    equalization, Nagel et al. 2019; SmoothQuant, Xiao et al. 2023). folded: where that costs nothing at run time;
    all: also by a multiplication before a layer, where its own noise, as the outputs see it, falls by 3 dB and by
    0.2% of that of all that could be equalized. Trials of sweep.layers calibrate alone, and so do those of a sweep.ptq
    that names neither this nor one of the next two; the candidates made of their choice do what these say."""
    bias_correction: bool = False
    """Take from each layer's bias what rounding shifts its channels by on average, on 128 calibration samples (Nagel et
    al. 2019, empirical)."""
    learned_rounding: RoundingSteps = 0
    """Steps, of 32 samples each, in which it is learned whether each weight is rounded up or down, and which ranges
    activations have, from FP32's outputs on up to 1,024 calibration samples (after Nagel et al. 2020; Cheng et al.
    2023; Bhalgat et al. 2020); 0: to the nearest. `effort: best` tries 200."""
    others: Annotated[tuple[OtherTool, ...], Field(strict=False)] = ()
    """Other tools' quantization beside it, each a candidate under the tool's name: nncf (runs in OpenVINO), onnxruntime
    (runs in ONNX Runtime), on `calibration.size` images, whatever a sweep chooses. They are measured as they come:
    require.int8_mac_share and require.sqnr_db are not asked of them. Extras of the same names; CPUs only."""

    @property
    def equalizes(self) -> bool:
        """Whether channels may be equalized."""
        return (self.effort, self.equalization) != ("fast", "none")

    @model_validator(mode="after")
    def _check(self) -> "Ptq":
        if len(set(self.others)) < len(self.others):
            raise ValueError(f"others: {list(self.others)} names a tool twice")
        if len(set(self.mode)) < len(self.mode):
            raise ValueError(f"mode: {list(self.mode)} names one twice")
        if self.backend != "x86" and self.reduce_range:
            raise ValueError(f"reduce_range is of the backend x86, and backend is {self.backend}: leave it out")
        if self.backend != "x86" and set(self.mode) != {"static"}:
            raise ValueError(f"mode: the backend {self.backend} quantizes in the mode static alone here")
        if self.equalizes and (self.backend != "x86" or not self.per_channel):
            raise ValueError(
                "effort and equalization are of the backend x86 and of weights with a scale for each channel: leave "
                "them out"
            )
        if (self.equalizes or self.bias_correction or self.learned_rounding) and "static" not in self.mode:
            raise ValueError(
                "effort, equalization, bias_correction and learned_rounding are of the mode static, which mode has not"
            )
        return self
