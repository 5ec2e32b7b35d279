"""Where stages are done and who watches: what no outcome depends on. Imports neither torch nor ray."""

from typing import Annotated, Literal

from pydantic import Field

from raq.experiment.fields import Natural, Positive, Section


class Resources(Section):
    """What one worker or actor of a kind of stage is given."""

    cpus: Positive | None = None
    """CPUs, for each worker or actor; null: all of a node (for training: an equal share of them a worker; for lower
    and evaluate, of which two run side by side: half)."""
    gpus: Natural = 0
    """GPUs, for each worker or actor."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Labels that the node must have: `{role: train}` for `ray start --labels role=train`."""
    timeout_s: Annotated[float, Field(gt=0, le=1e7)] | None = None
    """Seconds after which a stage that has not ended is taken to hang, and tried again, three times at most; null: no
    limit."""


class StageResources(Section):
    """What each kind of stage is given."""

    train: Resources = Resources()
    quantize: Resources = Resources()
    bench: Resources = Resources()


TrackerNames = Annotated[tuple[Literal["tensorboard", "mlflow", "wandb"], ...], Field(strict=False)]
