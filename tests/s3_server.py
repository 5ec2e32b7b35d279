"""A real S3-compatible server (moto's) on loopback, behind a line that can be cut."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ray_nodes import free_port

BUCKET = "results"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "AKIAEXAMPLE", "AWS_SECRET_ACCESS_KEY": "example-of-a-secret-key"}
START_TIMEOUT_S = 60.0


class Line:
    """Takes connections at a port of its own and passes them on, while it is neither cut nor held."""

    def __init__(self, target: int) -> None:
        self.target, self.is_cut = target, False
        self.flows = threading.Event()
        self.flows.set()
        self.open: set[socket.socket] = set()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.listener.getsockname()[1])
        threading.Thread(target=self._listen, daemon=True).start()

    def cut(self) -> None:
        """What is open breaks, and nothing new is let through."""
        self.is_cut = True
        for connection in list(self.open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def hold(self) -> None:
        """Everything stays open, and nothing comes through."""
        self.flows.clear()

    def mend(self) -> None:
        """All goes through again."""
        self.is_cut = False
        self.flows.set()

    def _listen(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            if self.is_cut:
                client.close()
                continue
            try:
                server = socket.create_connection(("127.0.0.1", self.target), timeout=10)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            self.open |= {client, server}
            for pair in ((client, server), (server, client)):
                threading.Thread(target=self._pass_on, args=pair, daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while piece := source.recv(65536):
                self.flows.wait()
                sink.sendall(piece)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self.open -= {source, sink}


@contextmanager
def s3_server(logs: Path) -> Iterator[tuple[str, Line]]:
    """The address of an empty folder of a bucket, credentials for it in the environment; and the line to it."""
    from pyarrow.fs import S3FileSystem

    port = free_port()
    with (logs / "s3.log").open("w") as log:
        command = [str(Path(sys.executable).parent / "moto_server"), "-H", "127.0.0.1", "-p", str(port)]
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    before = {name: os.environ.get(name) for name in CREDENTIALS}
    os.environ |= CREDENTIALS
    try:
        until = time.monotonic() + START_TIMEOUT_S
        while socket.socket().connect_ex(("127.0.0.1", port)) != 0:
            assert process.poll() is None and time.monotonic() < until, (logs / "s3.log").read_text()
            time.sleep(0.2)
        line = Line(port)
        where = {"endpoint_override": f"127.0.0.1:{line.port}", "scheme": "http", "region": "us-east-1"}
        S3FileSystem(**where, allow_bucket_creation=True).create_dir(BUCKET)
        yield f"s3://{BUCKET}/raq?" + "&".join(f"{key}={value}" for key, value in where.items()), line
        line.listener.close()
    finally:
        process.terminate()
        process.wait(timeout=30)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
