"""An experiment as a job of a running Ray cluster: sent, followed to its end, its exit code returned."""

import asyncio
import os
import re
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raq.errors import RaqError, UserError, first_line
from raq.signals import Terminated, uninterrupted
from raq.store.files import now
from raq.store.object_storage import check_address, is_address
from raq.submit.connection import connected, refuse_plain_http
from raq.submit.job_log import ENDED, RECONNECT_S, JobLost, Say, failures, followed
from raq.submit.working_dir import Package, pack

END_TIMEOUT_S = 60.0  # for a job's final status, which comes after its last line
MAX_SUBMISSIONS = 3  # one that is lost each time is not lost by chance
WAIT_AGAIN_S = 120.0  # for nodes to rejoin a restarted cluster
KILLED = (-9, 137)
INTERRUPTED = 130
Ask = Callable[[], str]  # after Ctrl-C: "stop" or "detach"


@dataclass(frozen=True)
class JobRequest:
    """A job to submit; it may be submitted more than once."""

    client: Any
    package: Package
    overrides: Sequence[str]
    results: str
    fresh: bool
    wait_s: float
    say: Say

    def submit(self, number: int) -> str:
        """Submit it, for the `number`th time; the job's id. RaqError if the cluster rejects it."""
        package, again = self.package, number > 1
        command = ["python", "-m", "raq", "run", package.experiment, "--address", "auto", "--results", self.results]
        for override in self.overrides:
            command += ["--set", override]
        command += ["--fresh"] if self.fresh else []
        wait_s = max(self.wait_s, WAIT_AGAIN_S) if again else self.wait_s
        command += ["--wait", f"{wait_s:g}"] if wait_s else []
        moment = re.sub(r"[^0-9]", "", now())[:14]
        identity = f"raq-{package.name}-{moment}-{os.getpid()}" + (f"-{number}" if again else "")
        until = time.monotonic() + (WAIT_AGAIN_S if again else 0)  # a restarted cluster may refuse jobs at first
        while True:
            try:
                job: str = self.client.submit_job(
                    entrypoint=shlex.join(command),
                    submission_id=identity,
                    runtime_env={"working_dir": str(package.folder)},
                    metadata={"experiment": package.name, "results": self.results},
                )
                return job
            except KeyboardInterrupt:
                self.say(f"interrupted while job {identity} was sent: if the cluster has taken it, it goes on there")
                raise
            except failures() as error:
                if self._taken(identity):  # the cluster took it, and its reply was lost
                    return identity
                if time.monotonic() >= until:
                    first = first_line(error)
                    raise RaqError(
                        f"the cluster does not take the job: {first}", "see the head's dashboard.log"
                    ) from error
            time.sleep(RECONNECT_S)

    def _taken(self, identity: str) -> bool:
        """Whether the cluster says that it has this job."""
        with suppress(*failures()):
            return self.client.get_job_info(identity) is not None
        return False


@dataclass(frozen=True, kw_only=True)
class Submission:
    """What is submitted, and where to.

    address: of the cluster's dashboard, a URL; results: a folder that all nodes of the cluster share, or an address
    that they can reach; fresh: every stage again; wait_s: how long the job may wait for nodes that its stages need;
    include: extra files to upload, that the experiment's code reads (`working_dir.pack`); insecure: plain HTTP to
    another machine; follow: print its log until its end.
    """

    experiment: Path
    overrides: Sequence[str] = ()
    address: str
    results: str
    fresh: bool = False
    wait_s: float = 0.0
    include: Sequence[Path] = ()
    insecure: bool = False
    follow: bool = True


def submit(asked: Submission, say: Say, ask: Ask) -> int:
    """Submit an experiment as a Ray job; the job's exit code, or 0 if the user detached or did not follow it.

    If the cluster loses the job while it is followed (its process is killed, the head restarts), it is submitted again,
    MAX_SUBMISSIONS times in all, and resumes from finished stages (with `fresh`, from the start). Raises UserError for
    what is wrong before anything is sent: the experiment, its package, the address, the token; RaqError if the cluster
    does not take the job or is lost.
    """
    address, results = asked.address, asked.results
    if is_address(results):
        check_address(results)
    elif not results.startswith("/"):
        raise UserError(
            f"--results {results}: the job runs on the cluster, so this must be a place there",
            "give the absolute path of a folder that all its nodes share, or an address such as s3://BUCKET/FOLDER",
        )
    refuse_plain_http(address, asked.insecure)
    with tempfile.TemporaryDirectory(prefix="raq-submit-") as scratch:
        package = pack(asked.experiment, asked.overrides, Path.cwd(), Path(scratch), asked.include)
        request = JobRequest(connected(address), package, asked.overrides, results, asked.fresh, asked.wait_s, say)
        for number in range(1, MAX_SUBMISSIONS + 1):
            job = request.submit(number)
            size = f"{package.files} file{'s' if package.files > 1 else ''}, {package.size_bytes / 1000:.0f} kB"
            say(f"job {job} submitted to {address}: {size}")
            if not asked.follow:
                say(_how_to_look(job, address, results))
                return 0
            try:
                return _followed_to_its_end(request, job, address, say, ask)
            except JobLost as lost:
                reason = f"job {job} was lost: {lost}"
                if number < MAX_SUBMISSIONS:
                    say(f"{reason}; submitting it again ({number + 1} of at most {MAX_SUBMISSIONS})")
    raise RaqError(
        f"{reason}; it was submitted {MAX_SUBMISSIONS} times", "finished stages are kept; see the head's logs"
    )


def show_package(path: Path, overrides: Sequence[str], include: Sequence[Path], say: Say) -> None:
    """Say what would be sent, a file a line, and what would be left out; nothing is sent and no cluster is asked."""
    with tempfile.TemporaryDirectory(prefix="raq-submit-") as scratch:
        package = pack(path, overrides, Path.cwd(), Path(scratch), include)
        for name in package.sent:
            say(name)
        for name, why in package.left_out:
            say(f"left out: {name}: {why}")


def _followed_to_its_end(asked: JobRequest, job: str, address: str, say: Say, ask: Ask) -> int:
    """Follow a job to its end; its exit code. After Ctrl-C the user is asked: 0 on detach, 130 after a stop.

    Raises JobLost if the job should be submitted again.
    """
    try:
        began = asyncio.run(followed(asked.client, job, say))
        return _ended(asked.client, job, say, asked.results, began=began)
    except KeyboardInterrupt as interruption:
        answer = "detach"
        with suppress(KeyboardInterrupt):  # a second Ctrl-C while the question is shown means detach
            answer = answer if isinstance(interruption, Terminated) else ask()
        with uninterrupted():
            if answer != "stop":
                say(f"detached: the job goes on. {_how_to_look(job, address, asked.results)}")
                return 0
            return _stopped(asked.client, job)


def _how_to_look(job: str, address: str, results: str) -> str:
    return (
        f"Its log: ray job logs --address {address} --follow {job}. Its results, where that folder is: "
        f"raq show latest --results {shlex.quote(results)}"
    )


def _until_ended(client: Any, job: str) -> Any:
    until = time.monotonic() + END_TIMEOUT_S
    while True:
        try:
            info = client.get_job_info(job)
            if str(info.status) in ENDED:
                return info
        except failures() as error:
            if time.monotonic() > until:
                raise RaqError(
                    f"the cluster no longer answers ({type(error).__name__}): how job {job} ended is not known",
                    "see 'ray job status' once it answers again",
                ) from error
        if time.monotonic() > until:
            raise RaqError(f"job {job} has not ended within {END_TIMEOUT_S:.0f} s", "see 'ray job status'")
        time.sleep(0.5)


def _ended(client: Any, job: str, say: Say, results: str, *, began: bool) -> int:
    """Wait for a job's final status; its exit code. began: whether it printed anything.

    Raises JobLost if the job should be submitted again, RaqError if it was stopped or never began.
    """
    info = _until_ended(client, job)
    status, code = str(info.status), info.driver_exit_code
    if status == "SUCCEEDED":
        say(f"job {job} has succeeded; where its results are: raq show latest --results {shlex.quote(results)}")
        return 0
    first = next(iter(str(info.message or "").strip().splitlines()), "")
    if status == "STOPPED":
        raise RaqError(f"job {job} was stopped", "finished stages are kept; the same command goes on from there")
    if code in KILLED:
        raise JobLost("its process was killed")
    if code is None and began:
        raise JobLost(first or "its node ended")
    if code is None:
        raise RaqError(f"job {job} failed before raq ran: {first}", "see the head's logs; raq must be installed there")
    missing = _missing_module(str(info.message or ""))
    if missing is not None and code == 1:
        raise RaqError(
            f"job {job} failed before raq ran: the cluster's `python` has no module {missing}",
            "raq and what it needs must be installed in the environment that `python` is of on the cluster's nodes: "
            "start Ray there from the environment that has raq, or put its python first on PATH",
        )
    return int(code) or 1


def _missing_module(message: str) -> str | None:
    """The module without which raq did not even begin, by the last lines of a job's log; None if it began."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    if any(line.startswith("raq: ") for line in lines):
        return None
    found = [match for line in lines if (match := re.search(r"No module named '?([\w.]+)", line))]
    return found[-1].group(1) if found else None


def _stopped(client: Any, job: str) -> int:
    try:
        client.stop_job(job)
    except failures() as error:
        raise RaqError(
            f"job {job} could not be stopped ({type(error).__name__})", f"try 'ray job stop {job}'"
        ) from error
    _until_ended(client, job)
    return INTERRUPTED


def ask_on_terminal() -> str:
    """After Ctrl-C: what the user says, on a terminal; elsewhere the job is left."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return "detach"
    sys.stderr.write("\nstop the job, or detach and leave it running? [s/D] ")
    sys.stderr.flush()
    return "stop" if sys.stdin.readline().strip().lower() in ("s", "stop") else "detach"
