"""What may be asked: valid experiments, and one clear line for every other."""

from pathlib import Path

import pytest

from raq.errors import UserError
from raq.experiment import spelling
from raq.experiment.load import load_experiment
from raq.experiment.schema import Experiment
from raq.plan.candidates import candidates_of

ROOT = Path(__file__).parents[2]


def load(tmp_path: Path, text: str | bytes, *overrides: str) -> Experiment:
    path = tmp_path / "e.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_experiment(path, overrides)


def test_three_lines_are_enough(tmp_path: Path) -> None:
    experiment = load(tmp_path, "name: a\ndata: {name: digits}\nmodel: {name: resnet20-cifar}\n")
    assert experiment.train.recipe == "fast"
    assert experiment.train.nesterov
    assert [c.name for c in candidates_of(experiment)] == ["fp32", "ptq", "qat"]


def test_recipe_fills_what_is_not_written(tmp_path: Path) -> None:
    train = load(tmp_path, "name: a\ntrain: {recipe: published, epochs: 2}\n").train
    assert (train.epochs, train.lr, train.weight_decay, train.augment) == (2, 0.01, 0.0, False)


def test_published_is_the_published_recipe() -> None:
    e = load_experiment(ROOT / "experiments" / "published.yaml")
    assert (e.train.epochs, e.train.lr, e.train.momentum, e.train.batch_size) == (15, 0.01, 0.9, 128)
    assert (e.train.schedule, e.train.augment, e.train.progressive, e.train.weight_decay) == ("constant", False, (), 0)
    assert e.data.mean == e.data.std == (0.5, 0.5, 0.5)
    assert e.data.validation_fraction == 0
    assert e.ptq is not None
    assert e.ptq.calibration.size == 256
    assert e.qat is not None
    assert e.qat.epochs == 3
    bench = e.bench
    assert (bench.batch_sizes, bench.warmup, bench.rounds, bench.repetitions) == ((128,), 5, 1, 50)


@pytest.mark.parametrize("path", sorted((ROOT / "experiments").glob("*.yaml")), ids=lambda p: p.name)
def test_every_experiment_of_the_repository_is_valid(path: Path) -> None:
    load_experiment(path)


def test_overrides_win_and_are_read_as_yaml(tmp_path: Path) -> None:
    e = load(tmp_path, "name: a\nqat: {lr: 1e-2}\n", "qat.lr=1e-4", "ptq=null", "bench.batch_sizes=[4]")
    assert e.qat is not None
    assert (e.qat.lr, e.ptq, e.bench.batch_sizes) == (1e-4, None, (4,))


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    e = load(tmp_path, "name: a\ndata: {root: there}\nmodel: {weights: w/x.pt}\n")
    assert e.data.root == str(tmp_path / "there")
    assert e.model.weights == str(tmp_path / "w" / "x.pt")


BAD = {
    "unknown key": ("name: a\ntrian: {}\n", "e.yaml:2: unknown key 'trian'", "did you mean 'train'"),
    "unknown nested": (
        "name: a\nptq:\n  calibration:\n    sizes: 3\n",
        "e.yaml:4: unknown key 'ptq.calibration.sizes'",
        "'size'",
    ),
    "duplicate": ("name: a\nseed: 1\nseed: 2\n", "e.yaml:3: the key 'seed' is there twice", "remove"),
    "type": ("name: a\ntrain:\n  epochs: '3'\n", "e.yaml:3: train.epochs is '3'", "train.epochs"),
    "bool is no number": ("name: a\ntrain: {epochs: true}\n", "train.epochs is True", ""),
    "range": ("name: a\ntrain: {epochs: 0}\n", "train.epochs is 0", ""),
    "nan": ("name: a\ntrain: {lr: .nan}\n", "train.lr is nan", "number"),
    "infinite": ("name: a\ntrain: {lr: .inf}\n", "train.lr is inf", "number"),
    "list member": ("name: a\nbench: {batch_sizes: [1, x]}\n", "bench.batch_sizes.1 is 'x'", ""),
    "choice": ("name: a\nbench: {devices: [tpu]}\n", "bench.devices", ""),
    "empty": ("", "this is empty", "quickstart"),
    "list": ("- a\n", "this is a list", "quickstart"),
    "binary": (b"\x80\x04\x95\xff\x00", "a binary file", "YAML"),
    "control characters": (b"name: a\x00b\n", "not valid YAML", ""),
    "tag": ("name: !!python/object/apply:os.system [ls]\n", "e.yaml:1: tags", "plain"),
    "alias": ("seed: &a 1\nname: *a\n", "e.yaml:2: aliases", "write the value out"),
    "merge": ("a: &a {x: 1}\nb: {<<: *a}\n", "aliases", ""),
    "alias bomb": ("a: &a [1]\nb: &b [*a, *a]\nc: &c [*b, *b]\n", "aliases", ""),
    "syntax": ("name: [a\n", "not valid YAML", ""),
    "two documents": ("name: a\n---\nname: b\n", "not valid YAML", ""),
    "deep": ("name: " + "[" * 3000, "nested deeper than 50 levels", ""),
    "name is a path": ("name: ../../etc\n", "name is '../../etc'", "another name"),
    "name missing": ("seed: 1\n", "name is missing", "name"),
    "data set": ("name: a\ndata: {name: /etc/passwd}\n", "'/etc/passwd' is not a data set", ""),
    "mean alone": ("name: a\ndata: {mean: [1, 2, 3]}\n", "mean and std come together", ""),
    "std zero": ("name: a\ndata: {mean: [0, 0, 0], std: [1, 0, 1]}\n", "above 0", ""),
    "network": (
        "name: a\nmodel: {name: resnet18-cifr}\n",
        "model.name: there is no network 'resnet18-cifr' (did you mean",
        "",
    ),
    "null byte": ('name: a\ndata: {root: "a\\0b"}\n', "data.root is", "data.root"),
    "no home": ("name: a\nmodel: {weights: ~nobody-at-all/x}\n", "model.weights is", ""),
    "size twice": ("name: a\nbench: {batch_sizes: [1, 1]}\n", "names a size twice", ""),
    "nesterov": ("name: a\ntrain: {momentum: 0}\n", "nesterov needs a momentum", ""),
    "qat progressive": ("name: a\nqat: {progressive: [0.5]}\n", "qat.progressive", ""),
    "recipe": ("name: a\ntrain: {recipe: null}\n", "train.recipe is None", ""),
    "huge number": ("name: a\ntrain: {epochs: 10000000000000000000000}\n", "train.epochs", ""),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line(tmp_path: Path, case: str) -> None:
    text, message, hint = BAD[case]
    with pytest.raises(UserError) as caught:
        load(tmp_path, text)
    assert message in caught.value.message
    assert hint in caught.value.hint
    assert caught.value.hint
    assert "\n" not in caught.value.message


def test_missing_file_and_large_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        load_experiment(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="cannot be read"):
        load_experiment(tmp_path)
    with pytest.raises(UserError, match="larger than"):
        load(tmp_path, b"#" * 1_000_001)


def test_paths_on_the_command_line_are_relative_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load(tmp_path, "name: a\n", "data.root=there").data.root == str(tmp_path / "elsewhere" / "there")


@pytest.mark.parametrize("override", ["epochs", "train.=1", "name.x=1", "train.epochs=[", "train.epochs=x"])
def test_bad_overrides(tmp_path: Path, override: str) -> None:
    with pytest.raises(UserError, match="--set"):
        load(tmp_path, "name: a\n", override)


def test_names_of_older_versions_are_read_and_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "e.yaml"
    file.write_text("name: e\ndata: {name: digits, validation: 0.3}\n")
    spelling.say_renamed.cache_clear()
    assert load_experiment(file).data.validation_fraction == 0.3
    assert load_experiment(file, ["data.validation=0.2"]).data.validation_fraction == 0.2
    said = capsys.readouterr().err
    assert said == "raq: data.validation is now called data.validation_fraction; the old name is still read\n"
    with pytest.raises(UserError, match=r"e\.yaml:2: data\.validation_fraction is 3"):
        file.write_text("name: e\ndata: {name: digits, validation: 3}\n")
        load_experiment(file)
    with pytest.raises(UserError, match=r"data\.validation and data\.validation_fraction are both given"):
        file.write_text("name: e\ndata: {name: digits, validation: 0.1, validation_fraction: 0.1}\n")
        load_experiment(file)
