"""What is sent with a job: all that it needs, and nothing else."""

from pathlib import Path

import pytest

from raq.cluster import package
from raq.cluster.package import pack
from raq.errors import UserError


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "sent"
    folder.mkdir()
    return folder


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "plain.yaml").write_text("name: plain\n")
    monkeypatch.chdir(folder)
    return folder


def sent(target: Path) -> set[str]:
    return {str(file.relative_to(target)) for file in target.rglob("*") if file.is_file()}


def test_an_experiment_without_code_goes_alone(root: Path, target: Path) -> None:
    (root / "other.py").write_text("x = 1\n")
    found = pack(root / "plain.yaml", [], root, target)
    assert (found.experiment, found.name, found.files) == ("plain.yaml", "plain", 1)
    assert sent(target) == {"plain.yaml"}


def test_code_goes_with_it_but_no_results_no_data_nothing_hidden(root: Path, target: Path) -> None:
    for name in ("own.py", "sub/more.py", ".git/config", ".env", "results/a.json", "sub/__pycache__/own.pyc",
                 "env/pyvenv.cfg", "env/lib/big.py", "pictures/one.png", "sub/weights.pt"):  # fmt: skip
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("x")
    (root / "sub" / "e.yaml").write_text(
        f"name: e\ndata: {{name: imagefolder, root: {root}/pictures}}\n"
        "model: {name: 'own:net', weights: weights.pt}\n"
    )
    found = pack(root / "sub" / "e.yaml", [], root, target)
    assert found.experiment == "sub/e.yaml"
    assert sent(target) == {"own.py", "plain.yaml", "sub/e.yaml", "sub/more.py", "sub/weights.pt"}
    assert found.files == 5
    assert found.size_bytes == sum((target / name).stat().st_size for name in sent(target))


def test_what_cannot_be_sent_is_refused(root: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "e.yaml").write_text("name: e\nmodel: {name: 'own:net'}\n")
    (root / "own.py").write_text("x")
    monkeypatch.setattr(package, "MOST_BYTES", 3_000_000)
    (root / "large.bin").write_bytes(bytes(4_000_000))
    with pytest.raises(UserError, match=r"4 MB to send, and a job may have 3: large.bin \(4 MB\)"):
        pack(root / "e.yaml", [], root, target)
    assert sent(target) == set()
    with pytest.raises(UserError, match=r"data\.root is pictures, and data is not sent"):
        pack(root / "plain.yaml", ["data.root=pictures"], root, target)
    inner = root / "inner"
    inner.mkdir()
    with pytest.raises(UserError, match="lies outside the working folder"):
        pack(root / "e.yaml", [], inner, target)
    with pytest.raises(UserError, match="unknown key"):
        pack(root / "e.yaml", ["trian.epochs=1"], root, target)
