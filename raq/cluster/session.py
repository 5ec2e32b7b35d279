"""A Ray cluster to work on: started on this machine, or joined; and Ray's chatter kept in a file.

Ray's settings by environment variable are made here and nowhere else, before ray is imported.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import unquote

from raq.cluster.nodes import BENCH_RESOURCE, Node, local_node, nodes_now
from raq.errors import RaqError, UserError, first_line
from raq.signals import interruption_kept, uninterrupted

RAY_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_worker_niceness": "0",  # by default Ray's workers, and what they measure, give way to every other process
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",  # at 0.2 the controller takes 15% of a core from the workers
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "120",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # else, under `uv run`, every worker starts through uv, from a packed copy of the working directory: seconds each
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
}
CONNECT_TIMEOUT_S = 10.0
JOIN_TIMEOUT_S = 60.0
START_ATTEMPTS, TOO_LATE = 3, "timed out during startup"  # Ray waits 30 s for a node, which is little on a busy machine
LONGEST_TEMPORARY_FOLDER = 30
MAX_LOOKS, CLEAN_LOOKS = 25, 4
OWN_CLUSTER = "RAQ_OWN_CLUSTER"  # in the environment of all processes of a cluster that raq started: its folder
OWN_CLUSTER_RESOURCE = "raq_own_cluster"  # marks a cluster that raq started


@contextmanager
def cluster(address: str | None, logs: Path) -> Iterator[list[Node]]:
    """Start Ray here (address None) or join the cluster at `address`; yields its nodes.

    A cluster started here ends here, and its temporary folder with it; after an error its logs are kept in `logs`.
    Raises UserError if there is no cluster at `address`.
    """
    os.environ.update({name: value for name, value in RAY_SETTINGS.items() if name not in os.environ})
    import ray

    if address is not None:
        _refuse_silence(address)
    scratch = None if address else _scratch_folder()
    if scratch is not None:
        os.environ[OWN_CLUSTER] = str(scratch)  # inherited by all that Ray starts: some rename themselves
    try:
        with interruption_kept():
            _start(ray, address, scratch)
        yield nodes_now()
    except Exception:
        if scratch is not None:
            _keep_logs(scratch, logs / "ray")
        raise
    finally:
        with uninterrupted():
            ray.shutdown()
            if scratch is not None:
                end_stragglers(scratch)
                shutil.rmtree(scratch, ignore_errors=True)  # processes that are just ending may still write there


def _scratch_folder() -> Path:
    """A folder for Ray's sockets and logs; below /tmp if TMPDIR is so long that a socket's path (107 bytes) is not."""
    usual = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix="raq-ray-", dir=usual if len(usual) <= LONGEST_TEMPORARY_FOLDER else "/tmp"))


def refuse_credentials(address: str) -> None:
    """UserError if there may be credentials in the address of a cluster, which is shown and logged; not repeated."""
    if any(mark in unquote(address) for mark in "@?#"):
        raise UserError(
            "--address: credentials and options do not belong in a cluster's address, which logs show",
            "give HOST:PORT; a token belongs in RAY_AUTH_TOKEN_PATH, with RAY_AUTH_MODE=token",
        )


def _refuse_silence(address: str) -> None:
    """UserError if nothing listens at host:port; Ray itself would try for minutes."""
    refuse_credentials(address)
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not port.isdigit():
        if address == "auto":
            return
        raise UserError(f"--address {address}: not an address", "give HOST:PORT of a Ray cluster's head, or auto")
    hint = "start one with 'ray start --head', or leave --address out to run on this machine"
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"--address {address}: no Ray cluster answers: {error}", hint) from None
    # Something listens; if it is not Ray, ray.init never returns, and no signal ends it: a child process tries first
    try:
        command = [sys.executable, "-c", "import ray, sys; ray.init(sys.argv[1], log_to_driver=False)", address]
        subprocess.run(command, timeout=JOIN_TIMEOUT_S, capture_output=True, check=True)
    except subprocess.TimeoutExpired:
        raise UserError(f"--address {address}: what listens there is no Ray cluster", hint) from None
    except subprocess.CalledProcessError as error:
        last = next(iter(reversed(error.stderr.decode(errors="replace").strip().splitlines())), "no reason given")
        raise UserError(f"--address {address}: Ray cannot join it: {last}", hint) from None


def _start_here(ray: Any, scratch: Path | None, quiet: dict[str, Any]) -> None:
    """A cluster of this machine alone. RuntimeError if its node is not there in time, in any of START_ATTEMPTS."""
    node = local_node()
    for left in reversed(range(START_ATTEMPTS)):
        try:
            ray.init(
                address="local",
                num_cpus=node.cpus,
                num_gpus=node.gpus,
                resources={BENCH_RESOURCE: 1, OWN_CLUSTER_RESOURCE: 1},
                include_dashboard=False,
                _node_ip_address="127.0.0.1",  # nobody else reaches its ports
                _temp_dir=str(scratch),
                **quiet,
            )
        except Exception as error:
            if TOO_LATE not in str(error):  # of no class of its own
                raise
            if not left:
                raise RuntimeError(
                    f"its node was not there within 30 s, {START_ATTEMPTS} times: what else runs?"
                ) from error
            ray.shutdown()
            if scratch is not None:
                end_stragglers(scratch)
                os.environ[OWN_CLUSTER] = str(scratch)
        else:
            return


def _start(ray: Any, address: str | None, scratch: Path | None) -> None:
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if address is not None:
            ray.init(address=address, **quiet)
            return
        _start_here(ray, scratch, quiet)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        first = first_line(error)
        if address is not None:
            raise UserError(
                f"--address {address}: no Ray cluster answers: {first}",
                "start one with 'ray start --head', or leave --address out to run on this machine",
            ) from error
        raise RaqError(f"Ray does not start on this machine: {first}", "see the log") from error


def end_stragglers(scratch: Path) -> None:
    """Kill what this cluster started and left: workers that were just starting look for their raylet for a minute.

    They are known by the cluster's own temporary folder in their command or environment, and by nothing else. Looked
    for until none is found several times running: one that is killed may just have started another.
    """
    os.environ.pop(OWN_CLUSTER, None)
    mark = str(scratch).encode()
    clean = 0
    for _ in range(MAX_LOOKS):
        found = False
        for process in Path("/proc").glob("[0-9]*"):
            if int(process.name) == os.getpid():
                continue
            try:
                if mark in (process / "cmdline").read_bytes() or mark in (process / "environ").read_bytes():
                    os.kill(int(process.name), signal.SIGKILL)
                    found = True
            except OSError:
                continue  # it has ended, or is not ours
        clean = 0 if found else clean + 1
        if clean == CLEAN_LOOKS:
            return
        time.sleep(0.2)


def _keep_logs(scratch: Path, logs: Path) -> None:
    """Copy what Ray's processes wrote, where it says anything."""
    for session in scratch.glob("session_2*"):
        for file in (session / "logs").glob("*"):
            if file.is_file() and 0 < file.stat().st_size < 5_000_000:
                logs.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, logs / file.name)


@contextmanager
def output_to(log: Path) -> Iterator[TextIO]:
    """Send all that this process and its children write to standard output and error to `log`; yields the real output.

    Ray's C++ parts write to the file descriptors, past Python's streams.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [os.dup(1), os.dup(2)]
    with log.open("a") as file, os.fdopen(os.dup(1), "w") as real:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            yield real
        finally:
            for stream, descriptor, original in zip((sys.stdout, sys.stderr), (1, 2), saved, strict=True):
                _flush_or_forget(stream, descriptor)
                os.dup2(original, descriptor)
                os.close(original)


def _flush_or_forget(stream: TextIO, descriptor: int) -> None:
    """What is left for a log whose disk is full goes nowhere: else the error that says so would go there too."""
    try:
        stream.flush()
    except OSError:
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), descriptor)
        stream.flush()
