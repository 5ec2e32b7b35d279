"""What a stage is asked to do, as its record keeps it: the settings of each kind. Imports neither torch nor ray.

A plan writes them as plain values, which its fingerprints cover; a stage reads them back through these models, so that
mypy knows their keys. `Data`, `Ptq`, `Qat` and the like are the experiment's own.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from raq.experiment.fields import Channels, Half, OtherTool
from raq.experiment.inputs import InputsOfSettings
from raq.experiment.measurement import Bench
from raq.experiment.metric import Metric
from raq.experiment.ptq import Calibration, Ptq
from raq.experiment.schema import Data
from raq.experiment.sweep import LayerSweep, PtqSweep
from raq.experiment.training import Qat, Train


class DataOfStage(Data):
    """Which data, and what they were found to be.

    digest: of all that counts; classes: None where there are none; inputs: what the network is called with; mean, std:
    of images, by channel, of pixels / 255.
    """

    digest: str
    classes: int | None
    inputs: InputsOfSettings
    mean: Channels | None = Field(strict=False)
    std: Channels | None = Field(strict=False)

    def at(self, root: str | None, **other: Any) -> Data:
        """The experiment's part of it, found in this folder; `other`: keys to set otherwise."""
        asked = self.model_dump(include=set(Data.model_fields))
        return Data.model_validate({**asked, "root": root, **other})


class MachineOfStage(BaseModel):
    """The kind of machine that compiled code is for."""

    cpu: str
    features: list[str]


class Settings(BaseModel):
    """Settings of any kind; keys that only fingerprints need are left aside."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class DataSettings(Settings):
    """Of a stage that reads images."""

    data: DataOfStage


class JudgedSettings(Settings):
    """Of a stage that compares by the metric."""

    metric: Metric = Metric()


class MetricSettings(DataSettings, JudgedSettings):
    """Of a stage that judges a network."""


class NetworkSettings(MetricSettings):
    """Of a stage that builds the network. output: which one is judged; loss: what it is trained with, if it has one."""

    model: str
    seed: int
    output: str | int | None = None
    loss: str | None = None


class Sources(Settings):
    """What the code of a user's function is made of. files: SHA-256 by name; distributions: versions by name."""

    files: dict[str, str]
    distributions: dict[str, str]


class SourcesSettings(Settings):
    """Of any kind. sources: of the user's own functions, by the function's name."""

    sources: dict[str, Sources] = {}


class WeightsSettings(NetworkSettings):
    """Of `weights`. weights: SHA-256 of the file."""

    weights: str


class TrainSettings(NetworkSettings):
    """Of `train`."""

    train: Train


class ParitySettings(MetricSettings):
    """Of a stage that does a part of the parity chain. parity_images: None: all of the test split."""

    seed: int
    parity_images: int | None


class PtqSettings(NetworkSettings):
    """Of `ptq`, and of the sweeps of calibrations and layers. mixture: which configuration of `layer_sweep`, from 1;
    enough_drop: at which `ptq.effort` is content, in points or in the metric's unit."""

    ptq: Ptq
    reduce_range: bool
    enough_drop: float | None = None
    mixture: int | None = None


class ModeSettings(NetworkSettings):
    """Of `dynamic` and `weight_only`."""

    reduce_range: bool = False


class HalfOfStage(BaseModel):
    """Which type of 16 bits."""

    dtype: Half


class HalfSettings(NetworkSettings):
    """Of `half`."""

    half: HalfOfStage


class TrainingSettings(Settings):
    """How `qat` trains."""

    qat: Qat


class QatSettings(NetworkSettings, TrainingSettings):
    """Of `qat`, and of its sweep. calibration: where it starts from PTQ, and there is none of its backend."""

    reduce_range: bool
    calibration: Calibration = Calibration()


class TrialSettings(Settings):
    """Of every sweep. trials: the digest of what its trials depend on."""

    trials: str


class PtqSweepSettings(PtqSettings):
    """Of `ptq_sweep`. margin: what the choice may lose against the largest
    calibration, in points or in the metric's unit."""

    sweep: PtqSweep
    margin: float


class QatSearch(Settings):
    """How trainings are searched. space: by key of `qat`, values or {"uniform" | "loguniform": [low, high]}."""

    space: dict[str, Any]
    search: Literal["grid", "random", "optuna"]
    scheduler: Literal["asha", "none"]
    trials: int | None


class QatSweepSettings(QatSettings):
    """Of `qat_sweep`."""

    sweep: QatSearch


class LayerSweepSettings(PtqSettings):
    """Of `layer_sweep`. max_drop: what a configuration may lose on the validation
    images, in points or in the metric's unit."""

    sweep: LayerSweep
    max_drop: float


class ArtifactSettings(MetricSettings):
    """Of `lower` and `evaluate`.

    kind: fp32, half, weight_only, dynamic, ptq, qat; max_batch: the largest batch that it takes; None: any.
    """

    candidate: str
    kind: str
    device: str
    machine: MachineOfStage
    runtime: str | None = None
    max_batch: int | None = None


class LowerSettings(ArtifactSettings):
    """Of `lower`.

    min_batch: the smallest batch size that is measured, whose layouts weights get; batch_sizes: all of them, where
    kernels are chosen for them; threads: those that it is compiled for, None: one for each CPU there is; quantizer: the
    other tool that quantizes it first, None: it is quantized, or is not to be; calibration: with which images;
    reduce_range: by another tool, for a CPU whose int8 sums may saturate.
    """

    model: str
    seed: int
    runtime: str
    min_batch: int = 1
    batch_sizes: list[int] = Field(default_factory=list)
    threads: int | None = None
    quantizer: OtherTool | None = None
    calibration: Calibration | None = None
    reduce_range: bool = False


class BenchSettings(Settings):
    """Of `bench`. inputs: what the network is called with; runtimes, kinds (as of `lower`): by candidate."""

    bench: Bench
    device: str
    machine: MachineOfStage
    model: str
    classes: int | None
    output: str | int | None = None
    inputs: InputsOfSettings
    runtimes: dict[str, str]
    kinds: dict[str, str]
