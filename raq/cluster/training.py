"""Training by several workers: the loop of model/training.py inside Ray Train."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from raq.errors import RaqError, StageError
from raq.model.training import Metrics, read_result
from raq.stages import Call, Results, finish_qat, finish_training, train_in

MAX_FAILURES = 2


class RayTrainContext:
    """The loop's context in a worker of Ray Train; checkpoints go through it to the trainer's storage."""

    def __init__(self, stage: str, board: Any) -> None:
        context = ray.train.get_context()
        self.rank = context.get_world_rank()
        self.world_size = context.get_world_size()
        self.device = torch.device(get_device())
        self.stage = stage
        self.board = board

    def progress(self, metrics: Metrics) -> None:
        """Post to the board."""
        self.board.post.remote({"stage": self.stage, "progress": metrics})

    def save(self, metrics: Metrics, write: Callable[[Path], None]) -> None:
        """Report the epoch from every rank (a barrier), with rank 0's checkpoint."""
        if self.rank != 0:
            ray.train.report(metrics)
            return
        with tempfile.TemporaryDirectory() as scratch:
            write(Path(scratch))
            ray.train.report(metrics, checkpoint=Checkpoint.from_directory(scratch))
        self.progress({"epoch_done": metrics})

    def restore(self) -> Path | None:
        """The last checkpoint, as a folder of this node."""
        checkpoint = ray.train.get_checkpoint()
        return None if checkpoint is None else Path(checkpoint.to_directory())


def _worker(config: dict[str, Any]) -> None:
    """What each worker runs. Whatever it raises Ray Train tries again, MAX_FAILURES times, from the last checkpoint."""
    call: Call = config["call"]
    torch.set_num_threads(call.cpus)
    train_in(call, RayTrainContext(call.name, config["board"]))


def distributed_stage(call: Call, board: Any) -> Results:
    """FP32 or quantization-aware training by `call.workers` workers; continues from its last checkpoint.

    The trainer's name and storage come from the stage's fingerprint, as Ray Train continues whatever has its name.
    Raises StageError if the workers cannot start or keep failing.
    """
    Path(call.folder).mkdir(parents=True, exist_ok=True)
    per_worker: dict[str, float] = {"CPU": call.cpus}
    if call.gpus:
        per_worker["GPU"] = call.gpus
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"call": call, "board": board},
        scaling_config=ScalingConfig(num_workers=call.workers, use_gpu=call.gpus > 0, resources_per_worker=per_worker),
        torch_config=TorchConfig(backend="nccl" if call.gpus else "gloo"),
        run_config=RunConfig(
            name=call.kind,
            storage_path=str(Path(call.folder) / "ray_train"),
            failure_config=FailureConfig(max_failures=MAX_FAILURES, controller_failure_limit=0),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
        ),
    )
    try:
        result = trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise _cause(error) from error
    assert result.checkpoint is not None
    with result.checkpoint.as_directory() as folder:
        trained = read_result(Path(folder))
    return (finish_training if call.kind == "train" else finish_qat)(call, trained)


def _cause(error: Exception) -> RaqError:
    """The worker's own error, out of Ray Train's."""
    failures = getattr(error, "worker_failures", {})
    for failure in failures.values():
        cause = getattr(failure, "cause", failure)
        if isinstance(cause, RaqError):
            return cause
    first = next(iter(failures.values()), error)
    text = next((line for line in reversed(str(first).strip().splitlines()) if line.strip()), type(first).__name__)
    return StageError(f"distributed training failed: {text}", "see the log")
