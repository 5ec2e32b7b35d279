"""Ctrl-C is never lost."""

import os
import signal

import pytest

from raq.interruption import interruption_kept


def test_an_interruption_comes_at_the_end() -> None:
    before = signal.getsignal(signal.SIGINT)
    went_on = False
    with pytest.raises(KeyboardInterrupt), interruption_kept():
        os.kill(os.getpid(), signal.SIGINT)
        went_on = True
    assert went_on
    assert signal.getsignal(signal.SIGINT) is before


def test_without_one_nothing_is_raised() -> None:
    with interruption_kept():
        pass
