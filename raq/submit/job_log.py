"""The log of a job, followed to the job's end, across breaks of the line, each of its lines said once."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

from raq.errors import RaqError

LOOK_AGAIN_S = 10.0
START_TIMEOUT_S = 300.0
MAX_RECONNECTIONS, RECONNECT_S = 10, 5.0
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
Say = Callable[[str], None]


class JobLost(Exception):
    """A job that ended by no fault of its own: its head was started anew, or its process was killed."""


def failures() -> tuple[type[Exception], ...]:
    """What Ray's client raises where the cluster does not answer, or not as it should."""
    import aiohttp
    from ray.exceptions import RayError

    return (RayError, RuntimeError, ValueError, OSError, aiohttp.ClientError)  # requests's are OSErrors


async def followed(client: Any, job: str, say: Say) -> bool:
    """Say the job's lines until it ends, after a break in the line where it broke; whether there were any.

    Raises JobLost if the job server no longer knows it, RaqError if it does not start, or the server stays away.
    """
    lines, began, breaks, ended = Lines(say), time.monotonic(), 0, False
    while True:
        stream = client.tail_job_logs(job)  # from the log's start, each time
        waiting = asyncio.ensure_future(anext(stream, None))
        try:
            while True:
                done, _ = await asyncio.wait({waiting}, timeout=LOOK_AGAIN_S)
                if not done:
                    status = str(client.get_job_info(job).status)
                    if status == "PENDING" and time.monotonic() - began > START_TIMEOUT_S:
                        client.stop_job(job)
                        raise RaqError(
                            f"job {job} has not started within {START_TIMEOUT_S:.0f} s, and was asked to stop",
                            f"see 'ray job status {job}' and the head's logs",
                        )
                    if status in ENDED and ended:
                        return lines.ended()
                    ended = status in ENDED  # what it said last may still be on its way
                    continue
                text = waiting.result()
                if text is None:
                    if str(client.get_job_info(job).status) in ENDED:
                        return lines.ended()
                    raise ConnectionError("the log ended before the job")  # its server, or what lies between, let go
                said = lines.said
                lines.take(text)
                breaks = breaks if lines.said == said else 0  # the log comes again from its start
                waiting = asyncio.ensure_future(anext(stream, None))
        except failures() as error:  # the line broke
            if _unknown(client, job):
                raise JobLost("the cluster was started anew, and does not know it") from error
            breaks += 1
            if breaks > MAX_RECONNECTIONS:
                raise RaqError(
                    f"job {job} cannot be followed: {type(error).__name__}",
                    "it may still run: see 'ray job status' once the cluster answers again",
                ) from error
            lines.again()
            await asyncio.sleep(RECONNECT_S)
        finally:
            waiting.cancel()


class Lines:
    """A log that comes in pieces, said by whole lines; when it comes again from its start, only what is new."""

    def __init__(self, say: Say) -> None:
        self.say, self.said, self.place, self.rest = say, 0, 0, ""

    def take(self, text: str) -> None:
        """A further piece."""
        *whole, self.rest = (self.rest + text).split("\n")
        for line in whole:
            self._take_line(line)

    def again(self) -> None:
        """The next piece is the log's first."""
        self.place, self.rest = 0, ""

    def ended(self) -> bool:
        """No more comes: a last line without an end is a line too. Whether there were any."""
        if self.rest:
            self._take_line(self.rest)
            self.rest = ""
        return self.said > 0

    def _take_line(self, line: str) -> None:
        self.place += 1
        if self.place > self.said:
            self.said = self.place
            self.say(line.rstrip("\r"))


def _unknown(client: Any, job: str) -> bool:
    """Whether the job server answers that there is no such job."""
    try:
        client.get_job_info(job)
    except failures() as error:
        return isinstance(error, RuntimeError) and "status code 404" in str(error)
    return False
