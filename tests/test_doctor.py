"""The doctor on machines that this one is not."""

from pathlib import Path

import pytest

from raq import doctor
from raq.environment import Machine


def test_a_torchvision_for_another_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    found = dict.fromkeys(doctor.LIBRARIES, "2.13.0+cpu")
    monkeypatch.setattr(doctor, "versions", lambda names: found)
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: ["numpy", "torch==2.14.1", "pillow"])
    bad = [finding for finding in doctor.packages() if finding.state == "bad"]
    assert [finding.name for finding in bad] == ["torchvision for torch"]
    assert "is for torch 2.14.1, here is 2.13.0+cpu" in bad[0].value
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: ["torch==2.13.0"])
    assert not [finding for finding in doctor.packages() if finding.state == "bad"]


def test_a_machine_without_a_compiler_does_not_start_a_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    (finding,) = doctor.before_run(tmp_path, compiles=True)
    assert (finding.name, finding.state) == ("C++ compiler", "bad")
    assert doctor.before_run(tmp_path, compiles=False) == []


@pytest.mark.parametrize(("free", "state"), [(1e8, "bad"), (2e9, "note"), (1e11, "ok")])
def test_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free: float, state: str) -> None:
    usage = type("Usage", (), {"free": free})
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage)
    assert {finding.state for finding in doctor._space(tmp_path / "not" / "there")} == {state}


def test_a_cpu_without_vnni(monkeypatch: pytest.MonkeyPatch) -> None:
    old = Machine("old", "x86_64", ["avx2"], 2)
    monkeypatch.setattr(doctor, "machine", lambda: old)
    assert "reduce_range" in next(f for f in doctor._cpu() if f.name.strip() == "no VNNI").value
