"""Training by several workers: the loop of model/training.py inside Ray Train."""

import json
import os
import pickle
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import ray.train
import torch
from pyarrow.fs import FileSelector, LocalFileSystem
from ray.exceptions import ActorUnschedulableError, NodeDiedError, OutOfMemoryError, RayActorError, WorkerCrashedError
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from ray.tune.integration.ray_train import TuneReportCallback
from ray.util.placement_group import (
    PlacementGroup,
    get_current_placement_group,
    placement_group_table,
    remove_placement_group,
)

from raq.cluster.answers import ErrorAnswer
from raq.cluster.events import EventSender
from raq.cluster.session import OWN_CLUSTER_RESOURCE, RAY_SETTINGS
from raq.errors import LostError, RaqError, StageError, UserError, last_message
from raq.lazy import resolve
from raq.model.checkpoints import CHECKPOINT, Metrics, TrainingResult, read_result
from raq.plan.kinds import KINDS
from raq.stages.call import Call, Results
from raq.stages.transfer import at_hand, delete_marker, read_marker, store_of, write_marker
from raq.store.object_storage import StorageError

MAX_FAILURES, MAX_PREEMPTIONS = 2, 10
START_TIMEOUT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
LOST = (RayActorError, ActorUnschedulableError, WorkerCrashedError, NodeDiedError, OutOfMemoryError, LostError)
FAILED = "failed.json"
PLACEMENT_GROUP = "place"  # the marker in which rank 0 writes the id of the workers' placement group
QUIET_S, RELEASE_TIMEOUT_S = 8.0, 60.0
UNUSED_HELPERS = {"DatasetsCallback", "PlacementGroupCleanerCallback"}


class _Trainer(TorchTrainer):
    """TorchTrainer without helper processes that do nothing here.

    One serves Ray Data sets, of which there are none; the other asks the dashboard whether the controller lives, and
    a cluster started by raq has no dashboard. Each costs seconds to start and a percent of a core for as long as
    training runs. A Ray that builds its callbacks differently starts them as usual.
    """

    def _create_default_callbacks(self) -> list[Any]:
        unused = UNUSED_HELPERS if OWN_CLUSTER_RESOURCE in ray.cluster_resources() else {"DatasetsCallback"}
        return [made for made in super()._create_default_callbacks() if type(made).__name__ not in unused]


class RayTrainContext:
    """The loop's context in a worker of Ray Train; checkpoints go through it to the trainer's storage."""

    def __init__(self, call: Call, send: EventSender) -> None:
        """Rank 0 records the workers' placement group, so that it can be removed if the stage's actor dies."""
        context = ray.train.get_context()
        self.rank = context.get_world_rank()
        self.world_size = context.get_world_size()
        self.device = torch.device(get_device())
        self.call = call
        self.progress = send
        group = get_current_placement_group()
        if self.rank == 0 and group is not None:
            if read_marker(call, PLACEMENT_GROUP) is not None:
                self.progress({"text": "its workers were started again, from their last epoch"})
            write_marker(call, PLACEMENT_GROUP, group.id.hex())

    def save(self, metrics: Metrics, write: Callable[[Path], None]) -> None:
        """Report the epoch from every rank (a barrier), with rank 0's checkpoint."""
        if self.rank != 0:
            ray.train.report(metrics)
            return
        with tempfile.TemporaryDirectory() as scratch:
            write(Path(scratch))
            upload = _upload_of(self.call)
            ray.train.report(metrics, checkpoint=Checkpoint.from_directory(scratch), checkpoint_upload_fn=upload)
        self.progress({"epoch_done": metrics})

    def restore(self) -> Path | None:
        """The last checkpoint, as a folder of this node."""
        checkpoint = ray.train.get_checkpoint()
        return None if checkpoint is None else Path(checkpoint.to_directory())


def _upload_of(call: Call) -> Callable[[Checkpoint, str], Checkpoint] | None:
    """A function that uploads a checkpoint with retries; None for a shared folder, where Ray Train copies it."""
    store = store_of(call)
    if not store.sends_checkpoints_itself():
        return None

    def upload(checkpoint: Checkpoint, name: str) -> Checkpoint:
        sent = store.send_training_checkpoint(Path(checkpoint.path), Path(call.folder), f"{call.kind}/{name}")
        return Checkpoint(*sent)

    return upload


@dataclass(frozen=True)
class _Asked:
    """What Ray Train hands to each worker."""

    call: Call
    send: EventSender


def _worker(config: dict[str, Any]) -> None:
    """The entry point of each worker. Ray Train retries any exception, MAX_FAILURES times, from the last checkpoint.

    An error of raq's own would only come again: the worker writes it to the marker FAILED, and the next attempt returns
    when it finds that.
    """
    asked = _Asked(**config)
    call = at_hand(asked.call)
    if read_marker(call, FAILED) is not None:
        return
    torch.set_num_threads(call.cpus)
    try:
        _training_of(call).train_in(call, RayTrainContext(call, asked.send))
    except StorageError:
        raise  # another attempt may find it
    except RaqError as error:
        what = ErrorAnswer(error.message, error.hint, user=isinstance(error, UserError))
        write_marker(call, FAILED, json.dumps(asdict(what)))
        raise


def distributed_stage(call: Call, send: EventSender) -> Results:
    """FP32 or quantization-aware training by `call.workers` workers, and what is made of it."""
    trained = train_on_workers(call, send)
    delete_marker(call, PLACEMENT_GROUP)
    results: Results = _training_of(call).finish(call, trained)
    return results


def _training_of(call: Call) -> Any:
    """The module that trains this kind of stage."""
    training = KINDS[call.kind].training
    assert training is not None, f"{call.kind} is not trained"
    return resolve(training)


def train_on_workers(
    call: Call, send: EventSender, report: Callable[[dict[str, Any]], None] | None = None
) -> TrainingResult:
    """Train on `call.workers` workers, or on a number within `call.elastic` if that is set, from the last checkpoint.

    report: in a trial of Ray Tune, receives each row of the history, those from before a restart too. The trainer's
    name and storage come from the stage's fingerprint, as Ray Train continues whatever has its name. Raises StageError
    if the workers cannot start or keep failing, LostError if they, or Ray Train's controller, keep being lost.
    """
    Path(call.folder).mkdir(parents=True, exist_ok=True)
    delete_marker(call, FAILED)
    if report is not None:
        for row in _known_history(call):
            report(row)
    for attempt in range(MAX_FAILURES + 1):
        try:
            result = _trainer(call, send, for_tune=report is not None).fit()
            _raise_noted(call)
            assert result.checkpoint is not None
            with result.checkpoint.as_directory() as folder:
                return read_result(Path(folder))
        except (ray.train.TrainingFailedError, ray.exceptions.RayError, OSError) as error:
            _raise_noted(call)
            if attempt == MAX_FAILURES or not _storage_was_lost(call, error):
                raise (LostError(_reason(error)) if was_lost(error) else _cause(error)) from error
    raise AssertionError("the last attempt returns or raises")


@cache
def _usual_start_s() -> float:
    """How long workers may take to start, as this process was started: it is set anew for every training."""
    return float(os.environ.get(START_TIMEOUT, RAY_SETTINGS[START_TIMEOUT]))


def workers_of(call: Call) -> tuple[ScalingConfig, TorchConfig]:
    """What each worker takes, and how they exchange gradients: NCCL where they have GPUs, else Gloo."""
    taken: dict[str, float] = {"CPU": call.cpus, **({"GPU": call.gpus} if call.gpus else {})}
    count, has_gpus = call.elastic or call.workers, call.gpus > 0
    scaling = ScalingConfig(None, count, has_gpus, taken, label_selector=dict(call.labels) or None)
    return scaling, TorchConfig(backend="nccl" if has_gpus else "gloo")


def _trainer(call: Call, send: EventSender, *, for_tune: bool) -> _Trainer:
    # Ray Train copies these to its controller; on a cluster that raq did not start, this process does not have them
    for name in (name for name in RAY_SETTINGS if name.startswith("RAY_TRAIN_")):
        os.environ.setdefault(name, RAY_SETTINGS[name])
    # elastic, it starts with the workers that there are once this has passed, so --wait does not extend it
    os.environ[START_TIMEOUT] = f"{_usual_start_s() if call.elastic else max(_usual_start_s(), call.wait_s):g}"
    scaling, exchange = workers_of(call)
    path, filesystem = store_of(call).training_storage(Path(call.folder))
    return _Trainer(
        _worker,
        train_loop_config=vars(_Asked(call, send)),
        scaling_config=scaling,
        torch_config=exchange,
        run_config=RunConfig(
            name=call.kind,
            storage_path=path,
            storage_filesystem=filesystem,
            callbacks=[TuneReportCallback()] if for_tune else [],
            failure_config=FailureConfig(  # the controller's: a worker may be lost while the group of them starts
                MAX_FAILURES, controller_failure_limit=MAX_FAILURES, max_preemption_failures=MAX_PREEMPTIONS
            ),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
        ),
    )


def _raise_noted(call: Call) -> None:
    """The error of ours that a worker has left, if one has."""
    failed = read_marker(call, FAILED)
    if failed is not None:
        what = ErrorAnswer(**json.loads(failed))
        raise (UserError if what.user else StageError)(what.error, what.hint)


def _storage_was_lost(call: Call, error: Exception) -> bool:
    """Whether training failed because storage was unreachable, and storage is back. Ray Train does not retry that.

    Raises StorageError if it does not answer in time.
    """
    words = ("OSError", "AWS Error", StorageError.__name__)
    of_storage = isinstance(error, ray.exceptions.RayError | OSError) or any(word in str(error) for word in words)
    return of_storage and store_of(call).is_back(FAILED)


def _known_history(call: Call) -> list[Metrics]:
    """The history in the newest checkpoint that the trainer of this stage has."""
    path, filesystem = store_of(call).training_storage(Path(call.folder))
    system = filesystem or LocalFileSystem()

    def read() -> list[Metrics]:
        infos = system.get_file_info(FileSelector(f"{path}/{call.kind}", allow_not_found=True, recursive=True))
        for found in sorted((info.path for info in infos if info.base_name == CHECKPOINT), reverse=True):
            with Checkpoint(found.rpartition("/")[0], system).as_directory() as folder:
                try:
                    return read_result(Path(folder)).history
                except (RuntimeError, EOFError, pickle.UnpicklingError) as error:  # cut off while it was sent
                    print(f"{found}: not a whole checkpoint: {error}", flush=True)
        return []

    return store_of(call).tried(read)


def remove_group(identity: str) -> None:
    """Remove a placement group, by its id in hexadecimal; nothing if it is removed."""
    group = PlacementGroup(ray.PlacementGroupID(bytes.fromhex(identity)))
    if placement_group_table(group).get("state") not in (None, "REMOVED"):
        remove_placement_group(group)


def remove_leaked_groups() -> None:
    """Remove the placement groups of a training whose stage actor died: Ray removes them only when the job ends.

    A group's id ends with that of its job: all groups of the job are removed, so no other distributed training may run
    in it. The
    dead actor's controller lives on for a moment, and may take new places for the workers that it has lost: they are
    given back until none has appeared for QUIET_S, at most for RELEASE_TIMEOUT_S.
    """
    job = ray.get_runtime_context().get_job_id()
    quiet_since = started = time.monotonic()
    while time.monotonic() - quiet_since < QUIET_S and time.monotonic() - started < RELEASE_TIMEOUT_S:
        for identity, group in placement_group_table().items():
            if identity.endswith(job) and group["state"] != "REMOVED":
                remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(identity))))
                quiet_since = time.monotonic()
        time.sleep(0.5)


def was_lost(error: Any) -> bool:
    """Whether an error of Ray was caused by losing a process or node, not by the code that ran there.

    One lost worker is enough: the others fail because they no longer reach it.
    """
    inner = [*getattr(error, "worker_failures", {}).values()]
    inner += [
        getattr(error, name) for name in ("controller_failure", "health_check_failure", "cause") if hasattr(error, name)
    ]
    return isinstance(error, LOST) or any(was_lost(failure) for failure in inner)


def _reason(error: Exception) -> str:
    """What a worker died of, out of Ray Train's error."""
    first = next(iter(getattr(error, "worker_failures", {}).values()), error)
    return last_message(first)


def _cause(error: Exception) -> StageError:
    return StageError(f"distributed training failed: {_reason(error)}", "see the log")
