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
    """Keep a Ctrl-C that arrives inside until the end: ray.init, interrupted, can swallow it, hang or crash."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    seen: list[int] = []

    before = signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if seen:
        raise KeyboardInterrupt


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Put away what must be put away, whatever further signals arrive."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
