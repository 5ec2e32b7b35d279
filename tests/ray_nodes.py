"""Real nodes of Ray on this machine: a head with a token and a dashboard, and workers, each a process of its own."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from raq.cluster.session import RAY_SETTINGS, end_stragglers

BIN = Path(sys.executable).parent
START_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Head:
    """Where a cluster is reached: its dashboard, its head's port, its token; and its nodes, `heads` and `workers`."""

    dashboard: str
    address: str
    token: str
    workers: "list[subprocess.Popen[bytes]]"
    start_worker: Callable[[Sequence[str]], None]
    heads: "list[subprocess.Popen[bytes]]"
    start_head: Callable[[], None]

    def lose(self, number: int) -> None:
        """A worker's node is gone, from one moment to the next, with all of its processes."""
        os.killpg(self.workers[number].pid, signal.SIGKILL)

    def lose_head(self) -> None:
        """The head is gone likewise; `start_head` brings it back, at the same ports, knowing nothing."""
        os.killpg(self.heads[-1].pid, signal.SIGKILL)

    def ask(self, path: str) -> Any:
        """What the dashboard answers."""
        return asked(self.dashboard, self.token, path)


def free_port() -> int:
    """A port of loopback that nobody listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def ray_cluster(
    logs: Path, head: Sequence[str], workers: Sequence[Sequence[str]] = (), *, caches: bool = False
) -> Iterator[Head]:
    """A cluster of `ray start` processes with these options; all of it ends with the context.

    caches: each node has a cache of its own, as machines have.
    """
    scratch = Path(f"/tmp/raq-nodes-{os.getpid()}")
    token, port, dashboard = secrets.token_hex(32), free_port(), free_port()
    environment = {**os.environ, **RAY_SETTINGS, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    environment["PATH"] = f"{BIN}:{environment['PATH']}"  # jobs run `python`
    common = ["--block", "--node-ip-address=127.0.0.1", "--dashboard-agent-listen-port=0"]
    first = ["--head", f"--port={port}", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1",
             f"--temp-dir={scratch}/head"]  # fmt: skip
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, scratch, ignore_errors=True)
        stack.callback(end_stragglers, scratch)

        def start(name: str, options: Sequence[str]) -> tuple[subprocess.Popen[bytes], Path]:
            log = logs / f"{name}.log"
            own = {"RAQ_CACHE": f"{scratch}/{name}/cache"} if caches else {}
            with log.open("w") as output:
                process = subprocess.Popen(
                    [str(BIN / "ray"), "start", *common, *options],
                    env=environment | own,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            stack.callback(_end, process)
            return process, log

        heads: list[subprocess.Popen[bytes]] = []

        def start_head() -> None:
            process, log = start(f"head-{len(heads)}", [*first, *head])
            heads.append(process)
            _wait_for(dashboard, process, log)

        start_head()
        started: list[subprocess.Popen[bytes]] = []

        def start_worker(options: Sequence[str]) -> None:
            # a folder of its own, as a node has: else they delete one another's packages
            name = f"worker-{len(started)}"
            started.append(start(name, [f"--address=127.0.0.1:{port}", f"--temp-dir={scratch}/{name}", *options])[0])

        for options in workers:
            start_worker(options)
        wait_for_nodes(f"http://127.0.0.1:{dashboard}", token, 1 + len(workers))
        yield Head(
            f"http://127.0.0.1:{dashboard}", f"127.0.0.1:{port}", token, started, start_worker, heads, start_head
        )


def _wait_for(port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    until = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.5)
        else:
            return


def asked(dashboard: str, token: str, path: str) -> Any:
    """What a dashboard answers, from JSON."""
    with urlopen(Request(f"{dashboard}{path}", headers={"Authorization": f"Bearer {token}"}), timeout=10) as answer:
        return json.load(answer)


def wait_for_nodes(dashboard: str, token: str, count: int) -> None:
    """Until so many nodes live."""
    until = time.monotonic() + START_TIMEOUT_S
    while True:
        with suppress(OSError):
            nodes = asked(dashboard, token, "/api/v0/nodes")["data"]["result"]["result"]
            if sum(node["state"] == "ALIVE" for node in nodes) == count:
                return
        assert time.monotonic() < until, f"{count} nodes have not joined"
        time.sleep(0.5)


def job_process(results: str) -> int | None:
    """The `raq run` of the job that writes these results, by its process's number; None if there is none."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            words = (process / "cmdline").read_bytes().split(b"\0")
            if words[1:4] == [b"-m", b"raq", b"run"] and results.encode() in words:
                return int(process.name)
    return None


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(timeout=30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
