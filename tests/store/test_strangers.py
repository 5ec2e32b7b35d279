"""Strangers' files and damaged records are input: one clear error, no raw exception, no escape sequence printed."""

import io
import json
import shutil
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutations import ESCAPE, as_json, every_key, mutated, mutated_text, without

from raq.errors import UserError
from raq.experiment.load import load_experiment
from raq.report.comparison import compare
from raq.report.summary import summarise
from raq.store.files import write_json
from raq.store.local import Store, digest, sealed

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "results" / "reference"
FEW = settings(
    max_examples=40, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
EXPERIMENTS = {path.name: path.read_text() for path in sorted((ROOT / "experiments").glob("*.yaml"))}
MAX_LINE = 2000
PARTS, ALL_PARTS = 1, 60  # the whole is measured by tests/benchmarks/fuzz.py


def said(*arguments: str) -> tuple[int, str]:
    """The exit code and all output of a verb, in this process."""
    from raq.cli.main import main

    output, before = io.StringIO(), sys.argv
    sys.argv = ["raq", *arguments]
    try:
        with redirect_stdout(output), redirect_stderr(output), pytest.raises(SystemExit) as caught:
            main()
    finally:
        sys.argv = before
    return int(caught.value.code or 0), output.getvalue()


def clean_output(code: int, text: str) -> None:
    assert code in (0, 2), text
    assert "a fault in raq" not in text, text
    assert all(c.isprintable() or c == "\n" for c in text), repr(text)
    assert code == 0 or all(len(line) < MAX_LINE for line in text.splitlines())


@FEW
@given(st.sampled_from(sorted(EXPERIMENTS)).flatmap(lambda name: mutated_text(EXPERIMENTS[name])))
def test_any_yaml_is_an_experiment_or_one_clear_line(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "strange.yaml"
    path.write_bytes(text.encode(errors="surrogatepass"))
    try:
        load_experiment(path)
    except UserError as error:
        assert len(error.message) < MAX_LINE
        assert len(error.hint) < MAX_LINE


KEYS = (
    "data.std", "train.lr", "sweep.qat.lr", "seed", "name", "bench", "a.b.c", "", ".", "qat.workers", "x" * 9000,
)  # fmt: skip
VALUES = (
    "[1, 2]", "{a: 1}", "9" * 5000, "x" * 300_000, "*a", "!!python/none ''", "[[[[1]]]]", ESCAPE, "~", ".nan",
    "{unif@orm: [1, 2]}",
)  # fmt: skip
OVERRIDES = st.builds("{}={}".format, st.sampled_from(KEYS), st.sampled_from(VALUES))


@FEW
@given(OVERRIDES)
def test_any_override_is_taken_or_one_clear_line(override: str) -> None:
    code, text = said("plan", str(ROOT / "experiments" / "quickstart.yaml"), "--set", override, "--results", "/nowhere")
    clean_output(code, text)


def test_what_a_reading_found_in_the_loader(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("name: x\nsweep: {qat: {lr: {unif@orm: [1, 2]}}}\n")
    with pytest.raises(UserError, match=r"x\.yaml:2: unknown key 'sweep\.qat\.lr\.unif@orm'") as caught:
        load_experiment(path)
    assert caught.value.hint == "did you mean 'uniform'? allowed here: uniform, loguniform"
    path.write_text("name: x\n")
    with pytest.raises(UserError, match=r"data\.mean has 3 values and std 2"):
        load_experiment(path, ["data.std=[1, 2]", "data.mean=[1, 2, 3]"])


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The reference runs as results folders: their records, and predictions that are as right as those say."""
    found = {}
    for name in ("cifar10", "mixed-precision", "qat-sweep", "calibration-sweep"):
        root = tmp_path_factory.mktemp(name)
        store, records = Store(root), json.loads((REFERENCE / name / "records.json").read_text())
        for record in records.values():
            folder = store.stage_folder(record["kind"], record["fingerprint"])
            folder.mkdir(parents=True)
            record["files"], record["digests"] = {}, {}
            if record["kind"] == "evaluate":
                results = record["results"]
                labels = np.zeros(results["test_images"], dtype=np.int32)
                predicted = (np.arange(len(labels)) >= results["correct"]).astype(np.int32)
                np.save(folder / "predictions.npy", np.stack([predicted, labels]))
                record["files"] = {"predictions.npy": (folder / "predictions.npy").stat().st_size}
            write_json(folder / "record.json", sealed(record))
        run = root / "runs" / "20260101T000000-x"
        run.mkdir(parents=True)
        kept = json.loads((REFERENCE / name / "run.json").read_text())  # without paths, so not as it was sealed
        write_json(run / "run.json", sealed(kept) if "seal" in kept else kept)
        shutil.copytree(root, root.with_name(f"{root.name}-whole"))
        found[name] = root
    return found


def whole(root: Path) -> str:
    """The run of a store once more, in a copy that nothing is changed in: to compare with."""
    return str(next(root.with_name(f"{root.name}-whole").glob("runs/*")))


@pytest.mark.parametrize("text", ["[" * 100_000, "1:" * 300 + "1.5", "{a: " * 30_000, "seed: " + "9" * 5000])
def test_yaml_that_is_made_to_be_slow(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(UserError):
        load_experiment(path)


def test_the_reference_runs_are_shown(stores: dict[str, Path]) -> None:
    for root in stores.values():
        code, text = said("show", "--results", str(root))
        assert code == 0, text
        said_at_last = " ".join(text.split())
        assert " Ship " in said_at_last or "Cannot tell which to ship" in said_at_last
        code, text = said("compare", "latest", whole(root), "--results", str(root))
        assert code == 0, text


@pytest.mark.parametrize("change", ["another kind", "gone"])
def test_a_run_without_the_stage_of_a_candidate_is_damaged(stores: dict[str, Path], change: str) -> None:
    """It would be shown as FP32, or not at all, with all the runs beside it."""
    root = stores["cifar10"]
    (path,) = root.glob("runs/*/run.json")
    before = path.read_text()
    run = json.loads(before)
    stages = {name: stage for name, stage in run["stages"].items() if name != "ptq"}
    if change == "another kind":
        stages["ptq"] = run["stages"]["train"]
    try:
        write_json(path, sealed({**run, "stages": stages}))
        code, text = said("show", "--results", str(root))
        assert (code, "stages.ptq" in text) == (2, True), text
        code, text = said("runs", "--results", str(root))
        assert (code, "damaged" in text) == (0, True), text
    finally:
        path.write_text(before)


@FEW
@given(st.data())
def test_any_record_is_shown_or_one_clear_line(stores: dict[str, Path], data: st.DataObject) -> None:
    """One value of one record mutated, sealed again as whoever forges it would; show, then compare."""
    root = stores[data.draw(st.sampled_from(sorted(stores)))]
    files = sorted([*root.glob("stages/*/record.json"), *root.glob("runs/*/run.json")])
    path = data.draw(st.sampled_from(files))
    before = path.read_text()
    record = data.draw(mutated(json.loads(before)))
    try:
        try:
            text = as_json({**record, "seal": digest({k: v for k, v in record.items() if k != "seal"})})
        except (TypeError, ValueError, AttributeError):
            text = as_json(record)
        path.write_text(text)
        for verb in (("show",), ("show", "--json"), ("compare", "latest", whole(root))):
            clean_output(*said(*verb, "--results", str(root)))
    finally:
        path.write_text(before)


@pytest.mark.parametrize("part", range(PARTS))
def test_every_key_left_out_and_every_key_null(stores: dict[str, Path], part: int) -> None:
    """One of many parts of them, of each kind of record and of a run's, sealed again: shown, or one clear line."""
    wanted = [case for number, case in enumerate(every_key(stores)) if number % ALL_PARTS == part]
    assert len(wanted) > 10
    for root, path, at, how in wanted:
        before = path.read_text()
        try:
            path.write_text(as_json(sealed(without(json.loads(before), at, how))))
            shown_or_refused(root)
        finally:
            path.write_text(before)


def shown_or_refused(root: Path) -> None:
    """As `show` and `compare` do, without the cost of the command line."""
    from raq.report.bench import print_comparison
    from raq.report.console import print_summary
    from raq.report.terminal import plain_console

    run = next(root.glob("runs/*"))
    console = plain_console(io.StringIO())
    try:
        print_summary(console, summarise(run), details=True)
        print_comparison(console, compare([run, run]))
    except UserError:
        pass


def test_a_record_that_was_changed_is_named_with_its_key(stores: dict[str, Path]) -> None:
    root = stores["cifar10"]
    path = next(p for p in sorted(root.glob("stages/evaluate-*/record.json")))
    before = path.read_text()
    record = json.loads(before)
    record["results"]["top1"] = "high"
    try:
        path.write_text(as_json(record))
        code, text = said("show", "--results", str(root))
        assert (code, "record.json: not as it was written" in text) == (2, True), text
        path.write_text(as_json(sealed(record)))
        code, text = said("show", "--results", str(root))
        assert (code, "record.json: damaged at results.top1" in text) == (2, True), text
        record["results"]["top1"] = 0.999
        path.write_text(as_json(sealed(record)))
        code, text = said("show", "--results", str(root))
        assert code == 2
        assert "predictions are right, and the record beside it says" in text
    finally:
        path.write_text(before)


def test_names_in_records_are_neither_markup_nor_escape_sequences(stores: dict[str, Path]) -> None:
    root = stores["cifar10"]
    path = next(p for p in root.glob("stages/bench-*/record.json"))
    before = path.read_text()
    record = json.loads(before)
    record["environment"]["machine"]["cpu"] = ESCAPE
    try:
        path.write_text(as_json(sealed(record)))
        code, text = said("show", "--results", str(root))
        clean_output(code, text)
        assert "?[31mred" in text
        assert "[bold]x[/nothing]" in text
        assert summarise(next(root.glob("runs/*")))["environment"]["machine"]["cpu"] == ESCAPE
        assert compare([next(root.glob("runs/*"))] * 2)["comparisons"][0]["environment"] == []
    finally:
        path.write_text(before)
