"""Ctrl-C and SIGTERM are never lost."""

import os
import signal

import pytest

from raq.signals import Terminated, interruption_kept


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
def test_a_signal_comes_at_the_end(number: int, raised: type[BaseException]) -> None:
    went_on = False
    with pytest.raises(raised), interruption_kept():
        os.kill(os.getpid(), number)
        went_on = True
    assert went_on


def test_without_one_nothing_is_raised_and_the_handlers_are_as_before() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with interruption_kept():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as ray.init installs one of its own
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
