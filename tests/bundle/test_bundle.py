"""What an exported folder says, and that it says it of strangers' records as text; the runs themselves: tests/cli."""

import importlib.resources
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from kept_records import judged_now, read
from runs_to_show import HOSTILE, poisoned

from raq.artifact.runtimes import RUNTIMES
from raq.bundle.card import card
from raq.bundle.facts import Exported, find_exported, metadata, needs
from raq.bundle.write import export
from raq.errors import UserError
from raq.experiment.inputs import image_input
from raq.experiment.load import as_in_file, load_experiment
from raq.report.markdown import block, code, escaped, table
from raq.store.files import file_digest, write_json
from raq.store.local import Store, sealed


def test_every_runtime_has_a_loader() -> None:
    for name in RUNTIMES:
        text = (importlib.resources.files("raq.bundle") / f"loader_{name}.py").read_text()
        assert "def load(path: str, threads: int, device: str)" in text
        assert "import raq" not in text and "from raq" not in text
        assert RUNTIMES[name].deployed_with, "what is to be installed where it runs"


IMAGES, OLD = image_input((3, 32, 32)).plain(), ("validation", "image_shape")


def as_today(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a stage of the kept run, which is older than inputs, `validation_fraction` and kinds."""
    if "data" not in settings:
        return settings
    data = {key: value for key, value in settings["data"].items() if key not in OLD}
    return {"kind": settings.get("candidate"), **settings, "data": {**data, "inputs": [IMAGES]}}


KEPT_STAGES = ("lower/ptq", "evaluate/ptq", "evaluate/fp32", "ptq", "train")


def stored(root: Path, **changed: Any) -> Path:
    """A kept run as a results folder, with ptq's files, whose artifact is some bytes; its run's folder.

    changed: by stage, what its record has otherwise; results: what those of evaluate/ptq and lower/ptq have.
    """
    store, records, run = Store(root), read("cifar10/records.json"), read("cifar10/run.json")
    run["stages"] = {name: one for name, one in run["stages"].items() if name in KEPT_STAGES}
    for stage, named in run["stages"].items():
        record = records.get(stage, {"kind": named["kind"], "fingerprint": named["fingerprint"], "results": {}})
        folder = store.stage_folder(record["kind"], record["fingerprint"])
        folder.mkdir(parents=True)
        results, settings = dict(record["results"]), as_today(record.get("settings") or {})
        if stage == "lower/ptq":
            (folder / "artifact.pt2").write_bytes(b"native code")
            results["sha256"] = file_digest(folder / "artifact.pt2")
        if stage.startswith("evaluate/"):
            predictions = np.zeros((2, results["test_images"]), dtype=np.int32)
            predictions[0, results["correct"] :] = 1
            np.save(folder / "predictions.npy", predictions)
        if stage == "evaluate/ptq":
            one = np.zeros((2, 3, 32, 32), dtype=np.float32)
            np.savez(folder / "examples.npz", input_0=one, output=np.zeros((2, 10), dtype=np.float32))
            results["examples"] = {"count": 2, "threads": 2}
        own = changed.get("results", {}) if stage.endswith("/ptq") else {}
        files = [path.name for path in folder.iterdir()]
        whole = {
            **record, "settings": settings, **changed.get(stage, {}), "results": {**results, **own},
            "files": {file: (folder / file).stat().st_size for file in files},
            "digests": {file: file_digest(folder / file) for file in files},
        }  # fmt: skip
        write_json(folder / "record.json", sealed(whole))
    folder = root / "runs" / run["id"]
    folder.mkdir(parents=True)
    write_json(folder / "run.json", sealed(run))
    return folder


def test_a_folder_has_what_its_records_say(tmp_path: Path) -> None:
    run = stored(tmp_path / "results")
    export(run, tmp_path / "deploy", "ptq")
    about = json.loads((tmp_path / "deploy" / "metadata.json").read_text())
    assert about["normalisation"] == {"scale": 255, "mean": [0.4914, 0.4822, 0.4465], "std": [0.247, 0.2435, 0.2616]}
    assert about["sha256"] == file_digest(tmp_path / "deploy" / "artifact.pt2")
    assert about["needs"].keys() == {"torch", "numpy"}
    listed = dict(reversed(line.split("  ")) for line in (tmp_path / "deploy" / "SHA256SUMS").read_text().splitlines())
    files = {p.relative_to(tmp_path / "deploy").as_posix() for p in (tmp_path / "deploy").rglob("*") if p.is_file()}
    assert listed.keys() == files - {"SHA256SUMS"}
    settings = yaml.safe_load((tmp_path / "deploy" / "experiment.yaml").read_text())
    assert settings == json.loads((run / "run.json").read_text())["settings"]


def test_numbers_of_the_card_are_the_records() -> None:
    summary = judged_now("cifar10")
    records = read("cifar10/records.json")
    found = _exported(summary, records)
    text = card(found, {**metadata(found), "examples": {"count": 8, "threads": 2, "cpu": None, "file": "x"}})
    ptq = next(one for one in summary["candidates"] if one["name"] == "ptq")
    assert f"| ptq | {100 * ptq['top1']:.2f} (" in text
    assert f"{ptq['drop_points']:.2f} ({ptq['drop_interval'][0]:.2f} to {ptq['drop_interval'][1]:.2f})" in text
    for row in ptq["latency"]:
        if row["runtime"] == "inductor":
            low, high = row["speedup_over_best_fp32_interval"]
            assert f"{row['speedup_over_best_fp32']:.2f} ({low:.2f} to {high:.2f})" in text
            assert f"| {row['batch_size']} | {row['p50_ms']:.3f} |" in text
    for row in ptq["parity"]:
        assert f"| {row['step']} |" in text
    assert "| arithmetic |" not in text
    found.lowering["note"] = "arithmetic between quantize and dequantize is float"  # of a graph for CPUs, on a GPU
    assert "| arithmetic | arithmetic between quantize and dequantize is float |" in card(found, metadata(found))


def _exported(summary: Any, records: Any, name: str = "ptq") -> Exported:
    ptq = next(one for one in summary["candidates"] if one["name"].startswith(name))
    evaluated = {**records[f"evaluate/{name}"]}
    evaluated["settings"] = as_today(evaluated["settings"])
    evaluated["results"] = {**evaluated["results"], "examples": {"count": 8, "threads": 2}}
    return Exported(summary, read("cifar10/run.json"), Store(Path("none")), ptq, records[f"lower/{name}"], evaluated)


def test_a_hostile_record_is_text_in_the_card() -> None:
    """No heading, link, address, element, escape or line of its own comes out of a text of a record."""
    found = _exported(judged_now("cifar10"), read("cifar10/records.json"))
    plain = card(found, metadata(found))
    summary = poisoned(found.summary)
    own = next(one for one in summary["candidates"] if one["name"].startswith("ptq"))
    evil = Exported(summary, found.run, found.store, own, found.lowered, found.evaluated)
    about = {**metadata(found), "class_names": [HOSTILE], "made_on": HOSTILE, "runtime": HOSTILE, "raq": HOSTILE}
    text = card(evil, about)
    assert text.count("\n") <= plain.count("\n"), "a text made a line"  # speeds of unknown runtimes are left out
    assert "\x1b" not in text and "\u202e" not in text
    assert "<script" not in re.sub(r"\\<", "", text)
    assert "alert(1)" in text


def test_versions_of_strangers_install_nothing_else() -> None:
    found = _exported(judged_now("cifar10"), read("cifar10/records.json"))
    versions = {"torch": "2.14.1\n--index-url http://evil", "numpy": "2.4.6+local"}
    found.evaluated["environment"] = {**found.evaluated["environment"], "versions": versions}
    assert needs(found) == {"torch": None, "numpy": "2.4.6"}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"results": {"examples": None}}, "NumPy has not its inputs' type"),
        ({"results": {"runtime": "tflite"}}, "tflite"),
        ({"evaluate/ptq": {"settings": {"device": "cpu"}}}, "damaged at settings."),
    ],
)
def test_what_is_damaged_is_refused(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    run = stored(tmp_path / "results", **changed)
    with pytest.raises(UserError, match=re.escape(said)):
        export(run, tmp_path / "deploy", "ptq")
    assert not (tmp_path / "deploy").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


def test_another_file_than_that_of_the_record(tmp_path: Path) -> None:
    run = stored(tmp_path / "results")
    found = find_exported(run, "ptq")
    path = found.store.file(found.lowered, "artifact.pt2")
    path.write_bytes(b"other native code")
    with pytest.raises(UserError, match="not as it was written"):
        export(run, tmp_path / "deploy", "ptq")


def planted(folder: Path, kind: str) -> str:
    """Change an exported folder in one way; what verify.py should say of it."""
    sums = folder / "SHA256SUMS"
    if kind == "an empty list":
        sums.write_text("")
        return "artifact.pt2 is not listed, examples.npz is not listed"
    if kind == "no list":
        sums.unlink()
        return "SHA256SUMS is gone"
    if kind == "a line less":
        sums.write_text("".join(line + "\n" for line in sums.read_text().splitlines() if "run.py" not in line))
        return "run.py is not listed"
    if kind == "a library of its own":
        (folder / "numpy.py").write_text("print('ran before it was looked at')")
        return "numpy.py is not listed"
    (folder / "loader.py").unlink()
    return "loader.py is gone"


@pytest.mark.parametrize(
    "kind", ["an empty list", "no list", "a line less", "a library of its own", "a file that is gone"]
)
def test_verify_looks_before_it_runs_anything(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "deploy"
    export(stored(tmp_path / "results"), folder, "ptq")
    said = planted(folder, kind)
    done = subprocess.run([sys.executable, "verify.py"], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert said in done.stdout
    assert "ran before" not in done.stdout
    assert "Traceback" not in done.stderr


def test_names_of_inputs_stay_in_their_comment() -> None:
    """A name with a line of its own does not become a line of the code that is to be copied."""
    found = _exported(judged_now("cifar10"), read("cifar10/records.json"))
    for line_end in ("\n", "\u2028", "\x85", "\x0b", "\r"):
        own = {**IMAGES, "name": f"x{line_end}import os  #"}
        text = card(found, {**metadata(found), "normalisation": None, "inputs": [own]})
        assert not [line for line in text.splitlines() if line.startswith("import os")]


def test_settings_are_written_as_a_file_spells_them(tmp_path: Path) -> None:
    """What a sweep's keys are called in Python is none of the file's business."""
    for path in sorted((Path(__file__).parents[2] / "experiments").glob("*.yaml")):
        experiment = load_experiment(path)
        (tmp_path / path.name).write_text(yaml.safe_dump(as_in_file(experiment.model_dump(mode="json"))))
        assert load_experiment(tmp_path / path.name) == experiment


def test_markdown() -> None:
    assert escaped("a*b_c [x](y) <b> `d` | e\nf\x1b[1m\u202e") == "a\\*b\\_c \\[x\\](y) \\<b\\> \\`d\\` \\| e f?\\[1m?"
    assert escaped("http://evil www.evil") == "http\\://evil www\\.evil"
    assert escaped("# not a heading") == "\\# not a heading"
    assert code("a`b") == "``a`b``"
    assert block("x\n```\ny")[0] == "````"
    assert table(["a"], [["x"]]) == ["| a |", "|---|", "| x |"]
