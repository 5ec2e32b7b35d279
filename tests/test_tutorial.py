"""experiments/tutorial.md, block by block, as a reader would do it in an empty folder."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

TUTORIAL = Path(__file__).parents[1] / "experiments" / "tutorial.md"
BLOCK = re.compile(r"^```(\w+)(?: file=(\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TIMEOUT_S = 900


def test_its_blocks_are_known() -> None:
    kinds = [(language, bool(name)) for language, name, _ in BLOCK.findall(TUTORIAL.read_text())]
    assert {language for language, _ in kinds} == {"python", "bash", "yaml"}
    assert kinds.count(("python", True)) == kinds.count(("yaml", True)) == 1
    for language, name, text in BLOCK.findall(TUTORIAL.read_text()):
        if language == "python":
            compile(text, name or "block", "exec")


@pytest.mark.slow
def test_the_tutorial(tmp_path: Path) -> None:
    """Files are written, Python is one session, every command ends well."""
    python: list[str] = []
    commands: list[str] = []
    for language, name, text in BLOCK.findall(TUTORIAL.read_text()):
        if name:
            (tmp_path / name).write_text(text)
        elif language == "python":
            python.append(text)
        elif language == "bash":
            commands += text.splitlines()
    # one command needs no run yet, the others do
    ahead = [command for command in commands if command.startswith("raq inspect")]
    for command in ahead:
        _done(tmp_path, command)
    (tmp_path / "session.py").write_text("\n".join(python))
    said = _run(tmp_path, [sys.executable, "session.py"])
    assert "Cannot tell which to ship" in said or "Ship " in said
    for command in commands:
        if command not in ahead:
            said = _done(tmp_path, command)
            if command == "python deploy/verify.py":
                assert "8 of 8 examples bit for bit" in said
            if command == "raq run mine.yaml":
                assert "Nothing to do" in said, "the same experiment as the mapping's"
    assert (tmp_path / "report.html").stat().st_size > 1_000_000


def _done(folder: Path, command: str) -> str:
    verb, *arguments = command.split()
    program = {"python": [sys.executable], "raq": [sys.executable, "-m", "raq"]}[verb]
    return _run(folder, [*program, *arguments])


def _run(folder: Path, command: list[str]) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
