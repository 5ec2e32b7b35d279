"""The JSON Schema for editors: it takes what raq takes, and refuses what the types refuse."""

from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from raq.errors import UserError
from raq.experiment.json_schema import every_key, json_schema
from raq.experiment.load import load_experiment

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
SCHEMA = Draft202012Validator(json_schema())


def test_it_is_a_schema() -> None:
    Draft202012Validator.check_schema(json_schema())


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.glob("*.yaml")), ids=lambda path: path.name)
def test_the_shipped_experiments(path: Path) -> None:
    text = path.read_text()
    assert text.startswith("# yaml-language-server: $schema=schema.json\n")
    assert not list(SCHEMA.iter_errors(yaml.safe_load(text)))


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        ("{}", False),  # name is the only key that must be there
        ("name: e", True),
        ("{name: e, sweep: {ptq: {calibration: {size: [16, 64]}}}}", True),
        ("{name: e, sweep: {ptq: {calibration.size: [16, 64]}}}", True),
        ("{name: e, sweep: {ptq: {calibration: {sizes: [16]}}}}", False),
        ("{name: e, sweep: {qat: {lr: {loguniform: [0.001, 0.1]}}}}", True),
        ("{name: e, sweep: {qat: {lr: {lognormal: [0.001, 0.1]}}}}", False),
        ("{name: e, train: {recipe: published, workers: [1, 4]}}", True),
        ("{name: e, train: {workers: [1, 4, 5]}}", False),
        ("{name: e, qat: null, ptq: null}", True),
        ("{name: e, data: null}", False),
        ("{name: e, data: {nam: digits}}", False),
        ("{name: e, bench: {batch_sizes: []}}", False),
        ("{name: e, bench: {batch_sizes: [1], precision: 0}}", False),
        ("{name: e, resources: {train: {labels: {role: gpu}}}}", True),
    ],
)
def test_it_agrees_with_raq(tmp_path: Path, text: str, taken: bool) -> None:
    assert SCHEMA.is_valid(yaml.safe_load(text)) is taken
    file = tmp_path / "e.yaml"
    file.write_text(text)
    if taken:
        load_experiment(file)
    else:
        with pytest.raises(UserError):
            load_experiment(file)


def test_every_key_says_what_it_means() -> None:
    found = {key.path: key for key in every_key()}
    assert not [path for path, key in found.items() if not key.meaning]
    assert found["train.epochs"].default == "the recipe's"
    assert (found["bench.batch_sizes"].allowed, found["bench.batch_sizes"].default) == (
        "a list of: a whole number from 1 to 65536", "[1, 128]"
    )  # fmt: skip
    assert (
        found["sweep.qat.lr"].allowed
        == "a list of: a number, or {uniform: [low, high]} or {loguniform: [low, high]}, or null"
    )
    assert found["train.workers"].allowed.endswith(", or a list of 2: a whole number from 1 to 1024")
    assert "sweep.ptq.calibration" not in found and "sweep.ptq.calibration.size" in found
