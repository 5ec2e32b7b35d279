"""Stages in Ray actors with resources of their own."""

import os
import time
import traceback
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray

from raq.cluster.board import progress_to
from raq.cluster.nodes import BENCH_RESOURCE, given_labels
from raq.cluster.session import output_to
from raq.environment import environment
from raq.errors import RaqError, UserError
from raq.plan import Pool
from raq.records import CHECKPOINTS, now
from raq.stages.at_hand import at_hand, fetch_checkpoint, log_here, log_sent, send_stage
from raq.stages.call import Call
from raq.stages.table import run_stage


@ray.remote(max_restarts=0)
class StageActor:
    """A process that does stages one after the other; torch stays imported between them."""

    def __init__(self, board: Any, gpus: int) -> None:
        self.board = board
        if gpus == 0:  # num_gpus=0 no longer hides the GPUs of the node
            os.environ["CUDA_VISIBLE_DEVICES"] = ""

    def run(self, call: Call, log: str) -> dict[str, Any]:
        """Do a stage: its results with the environment they came from, or what went wrong, as plain values."""
        execution, path = uuid.uuid4().hex, log_here(call, Path(log))
        with output_to(path), log_sent(call, path):
            self.board.post.remote({"stage": call.name, "node": ray.get_runtime_context().get_node_id()})
            started, started_at = time.perf_counter(), now()
            try:
                here = at_hand(call)
                fetch_checkpoint(here, Path(here.folder) / CHECKPOINTS[0])
                results = _do(here, self.board)
                files = send_stage(here, execution)
            except OSError as error:
                traceback.print_exc()
                place = f"{error.filename}: " if error.filename else ""
                return {
                    "error": f"{place}{error.strerror or error}",
                    "hint": "free some space, or see the log",
                    "user": False,
                }
            except RaqError as error:
                traceback.print_exc()
                return {"error": error.message, "hint": error.hint, "user": isinstance(error, UserError)}
            except SystemExit:  # by SIGTERM, as a node ends that is taken away, or by the user's code
                traceback.print_exc()
                return {"error": "SystemExit", "told_to_end": True}
            except Exception as error:
                traceback.print_exc()
                first = next(iter(str(error).strip().splitlines()), "")
                return {"error": f"{type(error).__name__}: {first}", "hint": "", "user": False}
            return {
                "id": execution,
                "files": files,
                "results": results,
                "environment": environment(),
                "started_at": started_at,
                "cpus": call.cpus,
                "workers": call.workers,
                "node": None if call.workers > 1 or call.elastic else _node(),  # several have theirs
                "duration_s": round(time.perf_counter() - started, 3),
            }


def _node() -> dict[str, Any]:
    """Which node this is: its address and the labels that it was given."""
    labels = given_labels(ray.get_runtime_context().get_node_labels())
    return {"address": ray.util.get_node_ip_address(), "labels": labels}


def _do(call: Call, board: Any) -> dict[str, Any]:
    if call.kind == "sweep":
        from raq.cluster.sweep import distributed_sweep

        return distributed_sweep(call, board)
    if call.kind == "layer_sweep":
        from raq.cluster.sweep import distributed_layer_sweep

        return distributed_layer_sweep(call, board)
    if call.kind == "qat_sweep":
        from raq.cluster.qat_sweep import distributed_qat_sweep

        return distributed_qat_sweep(call, board)
    if call.workers > 1 or call.elastic:
        from raq.cluster.training import distributed_stage

        return distributed_stage(call, board)
    return run_stage(call, progress_to(board, call.name))


def start_actor(board: Any, pool: Pool, cpus: int, gpus: int, labels: Mapping[str, str], *, waits: bool) -> Any:
    """An actor with the resources of a kind of stage, on a node with `labels`; for bench, a whole node's, marked taken.

    waits: the actor only waits for the workers of Ray Train or the trials of Ray Tune, which have the resources.
    """
    own_cpus, own_gpus = (0, 0) if waits else (cpus, gpus)
    resources = {BENCH_RESOURCE: 1} if pool == "bench" else {}
    options: dict[str, Any] = {"num_cpus": own_cpus, "num_gpus": own_gpus, "resources": resources}
    if labels and not waits:
        options["label_selector"] = dict(labels)
    actor: Any = StageActor  # ray.remote made it an actor class
    return actor.options(**options).remote(board, gpus)


def _machine_there() -> dict[str, Any]:
    from raq.environment import machine

    return machine()


def machine_of_bench_node(labels: Mapping[str, str], timeout_s: float = 120.0) -> dict[str, Any]:
    """What the machine is on which latencies will be measured: a node with `labels` and the resource 'bench', else any.

    Raises UserError if no node answers in time.
    """
    has_bench = BENCH_RESOURCE in ray.cluster_resources()
    options: dict[str, Any] = {"resources": {BENCH_RESOURCE: 0.001}} if has_bench else {}
    if labels:
        options["label_selector"] = dict(labels)
    describe = ray.remote(num_cpus=0, **options)(_machine_there)
    try:
        described: dict[str, Any] = ray.get(describe.remote(), timeout=timeout_s)
    except ray.exceptions.RayError as error:
        raise UserError(
            f"the cluster did not answer within {timeout_s:.0f} s ({type(error).__name__})",
            "see 'ray status'; raq must be installed on its nodes",
        ) from error
    return described
