"""`raq init`: the experiment that it writes can be asked, and nothing is overwritten."""

from pathlib import Path

import pytest

from raq.cli.starter import write_starter
from raq.errors import UserError
from raq.experiment.load import load_experiment
from raq.plan.candidates import candidates_of


def test_what_is_written_can_be_asked(tmp_path: Path) -> None:
    path = write_starter("mine", tmp_path)
    experiment = load_experiment(path)
    assert (experiment.name, [c.name for c in candidates_of(experiment)]) == ("mine", ["fp32", "ptq", "qat"])
    assert "raq plan mine.yaml" in path.read_text()


def test_commented_keys_are_keys(tmp_path: Path) -> None:
    path = write_starter("mine", tmp_path)
    path.write_text(path.read_text().replace("  # root:", "  root:").replace("  # weights:", "  weights:"))
    experiment = load_experiment(path)
    assert experiment.data.root and experiment.model.weights


@pytest.mark.parametrize("name", ["", "a/b", "../x", "-x", "x" * 101, "a b"])
def test_names_that_are_none(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="is no name of an experiment"):
        write_starter(name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    path = write_starter("mine", tmp_path)
    path.write_text("mine")
    with pytest.raises(UserError, match="is there already"):
        write_starter("mine", tmp_path)
    assert path.read_text() == "mine"
