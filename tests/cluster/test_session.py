"""The output of a process that joined a cluster, in a log, and back where people look."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from raq.cluster import session
from raq.errors import RaqError

SCRIPT = """
import sys
from pathlib import Path
from raq.cluster.session import output_to
with output_to(Path(sys.argv[1])) as real:
    print("to the log")
    real.write("to people\\n")
print("said afterwards")
sys.stderr.write("the error\\n")
"""


@pytest.mark.parametrize("full", [False, True])
def test_an_error_is_told_though_the_disk_of_the_log_is_full(
    tmp_path: Path, full: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """/dev/full is a file on a disk that has no space."""
    log = "/dev/full" if full else str(tmp_path / "log")
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)  # else print itself fails
    done = subprocess.run([sys.executable, "-c", SCRIPT, log], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "to people\nsaid afterwards\n", "the error\n")
    if not full:
        assert (tmp_path / "log").read_text() == "to the log\n"


class SlowMachine:
    """Ray as a busy machine has it: its node is not there in time, so often. It raises what Ray raises, no subclass."""

    def __init__(self, late: int, message: str = "The current node timed out during startup.") -> None:
        self.late, self.message, self.tried, self.ended = late, message, 0, 0

    def init(self, **settings: object) -> None:
        self.tried += 1
        if self.tried <= self.late:
            raise Exception(self.message)

    def shutdown(self) -> None:
        self.ended += 1


def test_a_busy_machine_is_given_more_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(session.OWN_CLUSTER, str(tmp_path))
    slow = SlowMachine(late=2)
    session._start(slow, None, tmp_path)
    assert (slow.tried, slow.ended) == (3, 2)
    assert os.environ[session.OWN_CLUSTER] == str(tmp_path), "what the last one starts is known too"
    with pytest.raises(RaqError, match="not there within 30 s, 3 times"):
        session._start(SlowMachine(late=3), None, tmp_path)
    other = SlowMachine(late=1, message="another reason")
    with pytest.raises(Exception, match="another reason"):
        session._start(other, None, tmp_path)
    assert other.tried == 1
