"""Ctrl-C and SIGTERM: both end a run with everything put away. Imports nothing of raq, torch or ray."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Terminated(KeyboardInterrupt):
    """SIGTERM, handled like Ctrl-C."""


def stop_on_sigterm() -> None:
    """Make SIGTERM raise `Terminated` in the main thread."""

    def stop(number: int, frame: Any) -> None:
        raise Terminated

    if threading.current_thread() is threading.main_thread() and os.name == "posix":
        signal.signal(signal.SIGTERM, stop)


@contextmanager
def interruption_kept() -> Iterator[None]:
    """Keep a Ctrl-C or SIGTERM that arrives inside until the end: ray.init, interrupted, can swallow it, hang or crash.

    The handlers of before stand again afterwards, whatever was installed inside.
    """
    seen: list[int] = []
    with _handling(lambda number, frame: seen.append(number)):
        yield
    if seen:
        raise Terminated if signal.SIGTERM in seen else KeyboardInterrupt


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Put away what must be put away, whatever further signals arrive."""
    with _handling(signal.SIG_IGN):
        yield


@contextmanager
def _handling(handler: Any) -> Iterator[None]:
    """Handle both signals so; other threads than the main one get no signals, and may not say how."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
