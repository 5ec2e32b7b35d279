"""What counts as lost with a process or a node, and is tried again, and what as a failure of its own."""

from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnschedulableError, OutOfMemoryError, RayTaskError
from ray.train import TrainingFailedError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from raq.cluster.ray_train import was_lost
from raq.errors import LostError, StageError

DIED = WorkerHealthCheckFailedError("rank 1", ActorDiedError())


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (ActorDiedError(), True),
        (OutOfMemoryError("by the node's memory monitor"), True),
        (WorkerGroupError("x", {0: RuntimeError("connection closed by peer"), 1: DIED}), True),
        (WorkerGroupError("x", {0: RuntimeError("shapes do not match")}), False),
        (ControllerError(ActorUnschedulableError("its node is being taken away")), True),
        (ControllerError(ValueError("x")), False),
        (RayTaskError("trial", "trace", LostError("workers")), True),
        (RayTaskError("trial", "trace", StageError("not finite")), False),
        (TrainingFailedError("x"), False),
        (None, False),
    ],
)
def test_what_is_lost(error: Any, lost: bool) -> None:
    assert was_lost(error) == lost
