"""TensorBoard: event files in the run's folder, `tensorboard --logdir results`. By tensorboardX, which Tune has too."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raq.report.markdown import block, escaped
from raq.report.terminal import printable
from raq.tracking.tracker import Values, flat_settings

FOLDER = "tensorboard"


class TensorBoard:
    """Scalars by epoch, a run a trial with its hyper-parameters, and what the run came to."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        from tensorboardX import SummaryWriter

        self.folder = folder / FOLDER
        self.writer = SummaryWriter(str(self.folder))
        lines = [f"{printable(key)}: {printable(value)}" for key, value in flat_settings(settings).items()]
        self.writer.add_text("experiment", "\n".join(block("\n".join(lines))))

    def scalars(self, values: Values, step: int) -> None:
        """Values by name at an epoch."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def trial(self, sweep: str, number: int, config: Mapping[str, Any], values: Values, *, failed: bool) -> None:
        """A finished trial, in a folder of its own: TensorBoard's tab HParams compares them."""
        from tensorboardX import SummaryWriter

        plain = {key: value if isinstance(value, int | float | bool) else str(value) for key, value in config.items()}
        with SummaryWriter(str(self.folder / sweep)) as writer:
            name = f"trial-{number}{'-failed' if failed else ''}"
            writer.add_hparams(plain, dict(values), name=name, global_step=number)

    def result(self, values: Values, texts: Mapping[str, str]) -> None:
        """What the run came to."""
        for name, value in values.items():
            self.writer.add_scalar(f"result/{name}", value, 0)
        for name, text in texts.items():
            self.writer.add_text(name, escaped(text))  # it reads Markdown

    def close(self, *, failed: bool) -> None:
        """Write what is left."""
        if failed:
            self.writer.add_text("state", "not complete")
        self.writer.close()
