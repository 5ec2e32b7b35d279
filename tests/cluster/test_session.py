"""The output of a process that joined a cluster, in a log, and back where people look."""

import subprocess
import sys
from pathlib import Path

import pytest

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
