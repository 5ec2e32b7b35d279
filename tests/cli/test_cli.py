"""The verbs as people use them: one real run, then everything that stands on its records."""

import hashlib
import html
import io
import json
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from workplace import Workplace, clear_error

import raq
from raq.environment import Machine, has_vnni
from raq.page.comparison_page import page_of_comparison
from raq.page.history_page import page_of_history
from raq.page.parts import Table
from raq.page.pictures import read_thumbnails
from raq.page.render import render
from raq.report.comparison import compare
from raq.report.summary import summarise
from raq.store.files import read_json, write_json
from raq.store.local import UNFINISHED, Store, sealed


def test_help_names_the_verbs(workplace: Workplace) -> None:
    done = workplace.raq_here("--help")
    assert done.returncode == 0
    verbs = re.findall(r"^  ([a-z]+)  +\S", done.stdout.partition("Commands:")[2], re.MULTILINE)
    assert verbs == [
        "init",
        "run",
        "plan",
        "show",
        "runs",
        "report",
        "export",
        "inspect",
        "check",
        "bench",
        "profile",
        "compare",
        "submit",
        "schema",
        "doctor",
    ]


def test_without_a_verb(workplace: Workplace) -> None:
    done = workplace.raq_here()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage: ")
    assert "  doctor   Inspect this machine: what would go wrong in a run?" in done.stdout
    assert workplace.raq_here("--version").stdout == f"raq {version('raq')}\n"


def test_unknown_verbs_and_options(workplace: Workplace) -> None:
    assert "rum" in clear_error(workplace.raq_here("rum"), 2)
    clear_error(workplace.raq_here("run"), 2)
    clear_error(workplace.raq_here("run", "tiny.yaml", "--sett", "x=1"), 2)


# --- a finished run ---


def test_a_run_ends_with_the_table_and_the_verdict(finished: Workplace) -> None:
    output = (finished.folder / "output.txt").read_text()
    assert "plan: 10 of 10 stages to do" in output
    assert "train: running: epoch 4: loss" in output
    assert "ptq: done" in output
    assert "\nShip " in output or "\nCannot tell which to ship at batch 8 on cpu" in output
    assert "\x1b" not in output, "plain lines off a terminal"
    assert "ray" not in output.lower().replace("array", ""), "Ray's own chatter is kept out"


def test_the_page_of_a_run(finished: Workplace) -> None:
    """It lies in the run's folder, says what changed, and its settings, saved as a file, are the same experiment."""
    (folder,) = (finished.folder / "results" / "runs").iterdir()
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert str(folder / "report.html") in (finished.folder / "output.txt").read_text()
    done = finished.raq_here("report", "latest", "--output", "sub/page.html")
    assert (done.returncode, done.stdout.strip()) == (0, "sub/page.html is written")
    assert (finished.folder / "sub" / "page.html").read_text(encoding="utf-8") == text
    settings = html.unescape(text.partition('<pre tabindex="0">')[2].partition("</pre>")[0])
    (finished.folder / "again.yaml").write_text(settings)
    assert "nothing to do: every stage is there already" in finished.raq_here("plan", "again.yaml").stdout
    summary = summarise(folder)
    assert html.escape(summary["verdict"]["why"], quote=False) in text.replace("&#39;", "'").replace("&#34;", '"')
    for name in ("ptq", "qat"):
        predicted = {
            one: np.load(next(finished.folder.glob(f"results/stages/evaluate-{stage[:16]}*/predictions.npy")))
            for one, stage in stages_of(folder).items()
        }
        changed = int((predicted[name][0] != predicted["fp32"][0]).sum())
        assert f"{name}: {changed} of 203 answers changed" in text


def stages_of(folder: Path) -> dict[str, str]:
    """By candidate, the fingerprint of its evaluation."""
    stages = read_json(folder / "run.json")["stages"]
    return {name.removeprefix("evaluate/"): one["fingerprint"] for name, one in stages.items() if "evaluate/" in name}


def test_an_exported_folder_runs_without_raq(finished: Workplace, tmp_path: Path) -> None:
    folder = tmp_path / "deployed"
    done = finished.raq_here("export", "latest", "--candidate", "ptq", "--output", str(folder))
    assert done.returncode == 0, done.stderr
    assert re.search(r"written: ptq for inductor", done.stdout)
    sums = subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=folder, check=False)
    assert sums.returncode == 0
    about = read_json(folder / "metadata.json")
    assert (about["classes"], about["inputs"][0]["shape"]) == (4, [3, 16, 16])
    with np.load(folder / "examples.npz") as stored:
        kept = stored["input_0"]
        assert (len(kept), len(stored["output"])) == (8, 8)
    verified = _python(folder, "verify.py")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert "8 of 8 examples bit for bit" in verified.stdout
    assert "classes: " in _python(folder, "run.py").stdout
    # the card's own lines: raw pixels to classes, in a process that cannot import raq
    (given,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    script = f"""
import sys; sys.modules["raq"] = None; sys.path.insert(0, {str(folder)!r}); sys.path.insert(1, {str(finished.folder)!r})
import tiny_user; pixels = tiny_user.data()[2][:8]
{given}
import run; assert (input_0 == run.examples()[0][0]).all(), "not what the network was evaluated with"
assert (output == run.examples()[1]).all(); print(classes.tolist())"""
    used = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert used.returncode == 0, used.stderr
    predictions = next(iter(finished.folder.glob("results/stages/evaluate-*/predictions.npy")))
    assert len(json.loads(used.stdout)) == 8 <= np.load(predictions).shape[1]


def test_a_changed_export_is_refused(finished: Workplace, tmp_path: Path) -> None:
    folder = tmp_path / "deployed"
    assert finished.raq_here("export", "latest", "--candidate", "qat", "--output", str(folder)).returncode == 0
    error = clear_error(finished.raq_here("export", "latest", "--candidate", "ptq", "--output", str(folder)), 2)
    assert f"--output {folder} is there already" in error
    with np.load(folder / "examples.npz") as stored:
        values = dict(stored)
    values["output"] = values["output"] + np.float32(1e-3)
    np.savez(folder / "examples.npz", **values)
    changed = _python(folder, "verify.py")
    assert (changed.returncode, changed.stdout) == (1, "NOT the files that were evaluated: examples.npz is another\n")
    sums = (folder / "SHA256SUMS").read_text().splitlines()
    fixed = hashlib.sha256((folder / "examples.npz").read_bytes()).hexdigest()
    (folder / "SHA256SUMS").write_text(
        "\n".join(f"{fixed}  examples.npz" if line.endswith("examples.npz") else line for line in sums) + "\n"
    )
    other = _python(folder, "verify.py")
    assert other.returncode == 1
    assert "DIFFERENT outputs" in other.stdout
    assert _python(folder, "verify.py", "--min-sqnr-db", "20").returncode == 0
    with (folder / "artifact.pt2").open("ab") as file:
        file.write(b" ")
    assert "NOT the files that were evaluated: artifact.pt2 is another" in _python(folder, "verify.py").stdout
    refused = _python(folder, "run.py")
    assert refused.returncode == 1
    assert "its SHA-256 is not that of metadata.json" in refused.stderr


def test_what_cannot_be_exported(finished: Workplace, tmp_path: Path) -> None:
    folder = tmp_path / "deployed"
    error = clear_error(finished.raq_here("export", "latest", "--candidate", "int4", "--output", str(folder)), 2)
    assert "has no candidate 'int4'" in error
    assert "fp32, ptq, qat" in error
    (tmp_path / "file").touch()
    clear_error(finished.raq_here("export", "latest", "--candidate", "ptq", "--output", str(tmp_path / "file")), 2)
    inside = str(tmp_path / "file" / "below")
    clear_error(finished.raq_here("export", "latest", "--candidate", "ptq", "--output", inside), 2)
    assert not list(tmp_path.glob(".deployed-*")), "nothing is left half-written"


def _python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-I", str(folder / arguments[0]), *arguments[1:]], capture_output=True, text=True, check=False
    )


def test_a_run_from_python(finished: Workplace) -> None:
    run = raq.open_run(Store(finished.folder / "results").find_run("latest"))
    candidates, latencies, layers, rounds = run.candidates(), run.latencies(), run.layers(), run.rounds()
    assert candidates["candidate"].tolist() == ["fp32", "ptq", "qat"]
    assert (candidates["samples"] == 203).all()
    kept = run.summary["candidates"][1]
    assert candidates.loc[1, "value"] == kept["top1"]
    assert [candidates.loc[1, "drop_low"], candidates.loc[1, "drop_high"]] == kept["drop_interval"]
    own = latencies[(latencies["candidate"] == "ptq") & (latencies["batch_size"] == 8)]
    (row,) = [row for row in kept["latency"] if row["batch_size"] == 8]
    assert own["p50_ms"].tolist() == [row["p50_ms"]]
    of_row = rounds[(rounds["candidate"] == "ptq") & (rounds["batch_size"] == 8)]
    assert of_row["p50_ms"].tolist() == row["round_p50_ms"]
    assert layers.groupby("candidate").size().to_dict() == {"ptq": 3, "qat": 3}
    assert layers["int8"].all()
    assert layers["macs"].sum() == 2 * (3 * 16 * 9 * 256 + 16 * 32 * 9 * 64 + 128 * 4)
    assert html.escape(run.verdict["why"]) in run._repr_html_()
    assert run.verdict["why"] in repr(run)


def test_show_json_is_the_contract(finished: Workplace) -> None:
    shown = json.loads(finished.raq_here("show", "latest", "--json").stdout)
    assert shown["complete"] is True
    assert [c["name"] for c in shown["candidates"]] == ["fp32", "ptq", "qat"]
    for candidate in shown["candidates"]:
        low, high = candidate["top1_interval"]
        assert low <= candidate["top1"] <= high
        assert candidate["test_images"] == 203, "the last partial batch counts"
        assert candidate["top1"] > 0.9
        artifact = candidate["artifacts"][0]
        assert Path(artifact["path"]).stat().st_size == artifact["size_bytes"]
        assert artifact["int8_mac_share"] == (0.0 if candidate["name"] == "fp32" else 1.0)
        assert {(row["batch_size"], row["runtime"]) for row in candidate["latency"]} >= {
            (1, "inductor"),
            (8, "inductor"),
        }
        for row in candidate["latency"]:
            keys = {"device", "runtime", "batch_size", "threads", "rounds", "mean_ms", "std_ms", "p50_ms", "p90_ms",
                    "p99_ms", "speedup", "speedup_interval", "baseline"}  # fmt: skip
            assert keys <= set(row)
            assert row["baseline"] == "fp32/eager"
    fp32, ptq, _ = shown["candidates"]
    assert ptq["reduce_range"] is not has_vnni(Machine(**shown["environment"]["machine"]))
    assert ptq["artifacts"][0]["weight_bytes"] < 0.35 * fp32["artifacts"][0]["weight_bytes"]
    assert ptq["drop_points"] == pytest.approx(100 * (fp32["top1"] - ptq["top1"]))
    assert [loss["name"] for loss in ptq["losses"]] == ["0", "3", "8"], "the convolutions and the linear layer"
    assert fp32["losses"] == []
    verdict = shown["verdict"]
    assert verdict["choice"] is None, "203 images cannot show that a drop is at most 1 point"
    claims = {claim["claim"]: claim for claim in verdict["claims"]}
    drop = claims["ptq loses at most 1 points of top-1"]
    assert drop["holds"] is None
    assert drop["interval"][0] < drop["value"] < drop["margin"] < drop["interval"][1]
    assert {(c["device"], c["batch_size"]) for c in verdict["choices"]} == {("cpu", 1), ("cpu", 8)}
    row = ptq["latency"][0]
    assert row["best_fp32"] in ("fp32/eager", "fp32/inductor")
    assert row["speedup_over_best_fp32"] <= row["speedup"] * 1.5
    assert "/tmp" not in json.dumps(shown["environment"])
    (measurement,) = shown["measurement"]
    assert (measurement["protocol"], measurement["stopped_by"], measurement["launches"]) == ("interleaved", "rounds", 6)
    assert measurement["noise"]["slots"] >= 6 * 4 * 2, "four contenders, two sizes, six rounds"
    profiles = {(one["candidate"], one["batch_size"]): one for one in measurement["profiles"]}
    assert profiles.keys() == {(name, size) for name in ("fp32", "ptq", "qat") for size in (1, 8)}
    times = {(c["name"], row["batch_size"]): row["p50_ms"] for c in shown["candidates"] for row in c["latency"]
             if row["runtime"] == "inductor"}  # fmt: skip
    assert {key: one["total_ms"] for key, one in profiles.items()} == times
    types = {key: {layer["dtype"] for layer in one["layers"]} for key, one in profiles.items()}
    assert all(found == ({"f32"} if name == "fp32" else {"u8"}) for (name, _), found in types.items())


def test_a_second_run_does_nothing(finished: Workplace) -> None:
    runs = sorted((finished.folder / "results" / "runs").iterdir())
    done = finished.raq("run", "tiny.yaml")
    assert done.returncode == 0
    assert "Nothing to do" in done.stdout
    assert "Ship " in done.stdout or "Cannot tell which to ship" in done.stdout
    assert sorted((finished.folder / "results" / "runs").iterdir()) == runs


def stale(place: Workplace, *arguments: str) -> set[str]:
    done = place.raq_here("plan", "tiny.yaml", *arguments)
    assert done.returncode == 0, done.stderr
    return {line.split()[0] for line in done.stdout.splitlines() if " stale " in line}


def test_plan_says_what_a_change_makes_stale(finished: Workplace) -> None:
    assert stale(finished) == set()
    assert stale(finished, "--set", "bench.rounds=7") == {"bench/cpu"}
    assert "on this machine, alone" in finished.raq_here("plan", "tiny.yaml", "--set", "bench.rounds=7").stdout
    assert len(stale(finished, "--set", "seed=1")) == 10


@pytest.mark.slow
def test_changing_the_rounds_measures_again_and_nothing_else(finished: Workplace) -> None:
    done = finished.raq("run", "tiny.yaml", "--set", "bench.rounds=7", "--set", "bench.batch_sizes=[2]")
    assert done.returncode == 0, done.stderr
    assert "plan: 1 of 10 stages to do: bench/cpu" in done.stdout
    shown = json.loads(finished.raq_here("show", "--json").stdout)
    assert {row["rounds"] for c in shown["candidates"] for row in c["latency"]} == {7}


def test_show_by_id_and_without_a_run(finished: Workplace, workplace: Workplace) -> None:
    first = sorted((finished.folder / "results" / "runs").iterdir())[0].name
    assert first in finished.raq_here("show", first).stdout
    assert "there is no run 'nothing'" in clear_error(finished.raq_here("show", "nothing"), 2)
    assert "there is no run here" in clear_error(workplace.raq_here("show"), 2)


def test_runs_are_listed_newest_first(finished: Workplace, tmp_path: Path) -> None:
    shutil.copytree(finished.folder / "results", tmp_path / "results")
    store = Store(tmp_path / "results")
    first = store.run_folders()[0]
    for name, change in (("99990101T000000-late", {"complete": False, "error": "interrupted", "started_at": 7}),
                         ("99990102T000000-later", {"complete": False, "error": UNFINISHED})):  # fmt: skip
        shutil.copytree(first, first.with_name(name))
        write_json(first.with_name(name) / "run.json", sealed({**read_json(first / "run.json"), "id": name, **change}))
    (store.root / "runs" / "99990103T000000-broken").mkdir()
    (store.root / "runs" / "99990103T000000-broken" / "run.json").write_text("{")
    found = json.loads(finished.raq_here("runs", "--results", str(store.root), "--json").stdout)
    assert [line["state"] for line in found][:4] == ["damaged", "unfinished", "stopped", "complete"]
    assert [line["run"] for line in found] == [folder.name for folder in reversed(store.run_folders())]
    assert (found[2]["why"], found[2]["started_at"]) == ("the run is not complete: interrupted", None)
    assert found[-1]["experiment"] == "tiny" and found[-1]["started_at"]
    shown = finished.raq_here("runs", "--results", str(store.root), "--limit", "2").stdout
    assert "99990103T000000-broken  damaged" in shown
    assert f"{len(found) - 2} older runs: --limit {len(found)} shows all" in shown
    assert "there is no run here" in finished.raq_here("runs", "--results", str(tmp_path / "nothing")).stdout


def test_the_records_hold_what_they_stand_on(finished: Workplace) -> None:
    records = [json.loads(p.read_text()) for p in (finished.folder / "results" / "stages").glob("*/record.json")]
    assert {r["kind"] for r in records} == {"train", "ptq", "qat", "lower", "evaluate", "bench"}
    for record in records:
        assert len(record["fingerprint"]) == 64
        assert record["environment"]["versions"]["torch"].startswith("2.")
        assert all(len(f) == 64 for f in record["inputs"].values())
    assert not list((finished.folder / "results").rglob("*.tmp"))
    assert not list((finished.folder / "results" / "work").iterdir())


# --- raq check and raq doctor ---


def artifact_of(finished: Workplace, candidate: str) -> Path:
    shown = json.loads(finished.raq_here("show", "--json").stdout)
    return next(Path(c["artifacts"][0]["path"]) for c in shown["candidates"] if c["name"] == candidate)


def test_check_names_layers_kernels_and_bytes(finished: Workplace) -> None:
    done = finished.raq_here("check", str(artifact_of(finished, "ptq")))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "int8 100.0% of the MACs, the file of its record" in done.stdout
    assert "qconv_pointwise" in done.stdout
    assert "ran in an isolated process with torch alone" in done.stdout
    assert "nothing is wrong with it" in done.stdout


def test_check_as_json_and_of_several(finished: Workplace, tmp_path: Path) -> None:
    moved = tmp_path / "moved.pt2"
    shutil.copy(artifact_of(finished, "qat"), moved)
    done = finished.raq_here("check", str(artifact_of(finished, "fp32")), str(moved), "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    fp32, qat = json.loads(done.stdout)
    assert (fp32["int8_mac_share"], qat["int8_mac_share"]) == (0.0, 1.0)
    assert fp32["vouched"] is True
    assert qat["vouched"] is None
    assert qat["ran"] is None, "nobody vouches for a file outside the results folder"
    assert [layer["name"] for layer in qat["layers"]][:2] == ["0", "3"]
    moved.write_bytes(moved.read_bytes()[:-1])
    done = finished.raq_here("check", str(moved))
    assert done.returncode == 1
    assert "PROBLEM: " in done.stdout
    assert "there is no such file" in clear_error(finished.raq_here("check", "none.pt2"), 2)


def test_the_parity_chain_is_shown(finished: Workplace) -> None:
    shown = json.loads(finished.raq_here("show", "--json").stdout)
    steps = {c["name"]: [row["step"] for row in c["parity"]] for c in shown["candidates"]}
    assert steps == {
        "fp32": ["fp32", "lowered", "reloaded"],
        "ptq": ["fp32", "simulated", "converted", "lowered", "reloaded"],
        "qat": ["fp32", "prepared", "simulated", "converted", "lowered", "reloaded"],
    }
    assert all(c["parity"][-1]["equal"] for c in shown["candidates"]), "a saved file computes what was compiled"
    assert "parity: fp32" in finished.raq_here("show", "--details").stdout
    ledger = shown["candidates"][1]["artifacts"][0]["ledger"]
    assert ledger["by_dtype"]["int8"] == 432 + 4608 + 512
    assert ledger["duplicates"] == []


def test_bench_of_artifacts(finished: Workplace, tmp_path: Path) -> None:
    """Two artifacts side by side, the first the baseline; and what is no artifact, or has no known input."""
    ours = [str(artifact_of(finished, name)) for name in ("fp32", "ptq")]
    few = ["--batch-size", "2", "--protocol", "published"]
    done = finished.raq("bench", *ours, *few, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert [artifact["name"] for artifact in found["artifacts"]] == ["fp32", "ptq"]
    assert [(row["batch_size"], row["baseline"]) for row in found["rows"]] == [(2, "fp32/inductor")] * 2
    assert len(found["samples"]["ptq/inductor/2"][0]["samples_ms"]) == 50
    assert "there is no such file" in clear_error(finished.raq_here("bench", "none.pt2"), 2)
    assert "--precision" in clear_error(finished.raq_here("bench", *ours, "--precision", "0"), 2)
    assert "not the shape of an image" in clear_error(finished.raq_here("bench", *ours, "--input-shape", "3,²,3"), 2)
    assert "says that it takes images float32 [n, 3, 16, 16]" in clear_error(
        finished.raq_here("bench", *ours, "--input-shape", "3,64,64"), 2
    )
    assert "names a size twice" in clear_error(
        finished.raq_here("bench", *ours, "--batch-size", "1", "--batch-size", "1"), 2
    )
    assert "takes no precision" in clear_error(
        finished.raq_here("bench", *ours, "--protocol", "published", "--precision", "0.1"), 2
    )
    (tmp_path / "text.pt2").write_text("no package")
    assert "not a readable package" in clear_error(finished.raq_here("bench", str(tmp_path / "text.pt2")), 1)


def test_compare(finished: Workplace, tmp_path: Path) -> None:
    shutil.copytree(finished.folder / "results", tmp_path / "other")
    other = str(Store(tmp_path / "other").run_folders()[-1])
    done = finished.raq_here("compare", "latest", other)
    assert done.returncode == 0, done.stderr
    assert "ptq: top-1 +0.00 points" in done.stdout
    assert "cpu, inductor, batch 8, over fp32/eager: " in done.stdout
    assert json.loads(finished.raq_here("compare", "latest", other, "--json").stdout)["comparisons"]
    assert "two runs or more" in clear_error(finished.raq_here("compare", "latest"), 2)
    itself = clear_error(finished.raq_here("compare", other, "latest", other), 2)
    assert f"{other} is the same run as {other}" in itself


# --- two runs ---


@pytest.fixture
def two_runs(finished, tmp_path: Path) -> tuple[Store, list[Path]]:
    """The finished run, and a copy of it elsewhere."""
    folders = []
    for name in ("one", "other"):
        shutil.copytree(finished.folder / "results", tmp_path / name)
        folders.append(Store(tmp_path / name).run_folders()[0])
    return Store(tmp_path / "other"), folders


def set_times(store: Store, milliseconds: float) -> None:
    """Give every round of an artifact about so many milliseconds, and of the baseline about 10: known, not measured."""
    (path,) = (store.root / "stages").glob("bench-*/record.json")
    record = read_json(path)
    for row in record["results"]["rows"]:
        usual = 10.0 if row["runtime"] == "eager" else milliseconds
        row["round_p50_ms"] = [usual * (1 + 0.001 * (n % 3)) for n in range(len(row["round_p50_ms"]))]
        row["round_disturbed"] = [False] * len(row["round_p50_ms"])
        row["speedup"] = 10.0 / usual
    write_json(path, sealed(record))


def test_a_run_against_itself(two_runs) -> None:
    (compared,) = compare(two_runs[1])["comparisons"]
    assert compared["environment"] == []
    assert "both show the same executions of every stage, so nothing can differ" in compared["conditions"]
    assert [c["name"] for c in compared["candidates"]] == ["fp32", "ptq", "qat"]
    for candidate in compared["candidates"]:
        assert candidate["top1"]["points"] == 0.0
        assert "the same images right" in candidate["top1"]["said"]
        assert [row["batch_size"] for row in candidate["latency"] if row["runtime"] == "inductor"] == [1, 8]
        for row in candidate["latency"]:
            assert row["ratio"] == pytest.approx(1.0)
            assert "equal within 2%" in row["said"] or "cannot tell" in row["said"], "as the machine is busy or not"
    json.dumps(compared, allow_nan=False)


def test_a_stage_made_anew_since_is_said(two_runs) -> None:
    """Its record is of another execution than the run's own."""
    store, (_, folder) = two_runs
    (path,) = (store.root / "stages").glob("bench-*/record.json")
    assert summarise(folder)["made_anew"] == []
    write_json(path, sealed({**read_json(path), "id": "of another execution"}))
    assert summarise(folder)["made_anew"] == ["bench/cpu"]


def test_a_tenth_of_the_speed_is_seen(two_runs) -> None:
    _, folders = two_runs
    for folder, milliseconds in zip(folders, (5.0, 50.0), strict=True):
        set_times(Store(folder.parent.parent), milliseconds)
    (compared,) = compare(folders)["comparisons"]
    for candidate in compared["candidates"]:
        for row in candidate["latency"]:
            assert row["ratio"] == pytest.approx(0.1, rel=0.01)
            assert row["interval"][1] < 0.11
            assert row["said"].endswith("different")
    compared_page = page_of_comparison(compare(folders))
    assert "differences are real" in compared_page.answer
    speeds = next(
        part for part in compared_page.sections[0].parts if isinstance(part, Table) and part.caption == "Speed"
    )
    said = {(row[0].text, row[1].text, row[3].sort): row[6].sort for row in speeds.rows}
    assert said == {
        (candidate["name"], row["runtime"], row["batch_size"]): row["ratio"]
        for candidate in compared["candidates"]
        for row in candidate["latency"]
    }
    history = page_of_history(folders)
    assert not history.is_good
    assert history.answer == f"2 runs of 1 experiment; real changes for the worse: {len(speeds.rows)}."
    (section,) = history.sections
    (metrics, over, changes, runs) = section.parts
    assert [row[5].text for row in changes.rows] == ["worse"] * len(speeds.rows)
    assert metrics.data[0]["y"] == [100 * summarise(folder)["candidates"][0]["top1"] for folder in folders]
    assert len(runs.rows) == 2
    assert {trace["name"] for trace in over.data} >= {"ptq/inductor, batch 8, cpu", "qat/inductor, batch 1, cpu"}
    for page in (compared_page, history):
        assert "<script>alert" not in render(page)


def test_what_changed_between_two_runs_is_named(two_runs) -> None:
    """Keys of the experiment, and stages with why; the stages that both stand on are shared."""
    _, (first, second) = two_runs
    record = read_json(second / "run.json")
    record["settings"]["qat"]["epochs"] = 7
    changed = record["stages"]["qat"]
    changed["depends"]["settings/qat/epochs"], changed["fingerprint"] = "7", "0" * 64
    record["stages"]["bench/cpu"]["id"] = "done again"
    write_json(second / "run.json", sealed(record))
    (one,) = compare([first, second])["comparisons"]
    assert one["settings"] == [{"key": "qat.epochs", "values": [2, 7]}]
    stages = {stage["name"]: stage for stage in one["stages"]}
    assert stages["qat"] == {"name": "qat", "shared": False, "follows": False, "why": "qat.epochs 2 -> 7"}
    assert stages["bench/cpu"]["why"] == "done again: all that it depends on is the same"
    assert {name for name, stage in stages.items() if not stage["shared"]} == {"qat", "bench/cpu"}


def test_pages_of_comparison_and_history_are_written(finished: Workplace, tmp_path: Path) -> None:
    shutil.copytree(finished.folder / "results", tmp_path / "results")
    store = Store(tmp_path / "results")
    first = store.run_folders()[0]
    name = f"99990102T000000-{'<script>alert(1)</script>'.replace('/', '_')}"
    shutil.copytree(first, first.with_name(name))
    record = {**read_json(first / "run.json"), "id": name, "experiment": "<script>alert(2)</script>"}
    write_json(first.with_name(name) / "run.json", sealed(record))
    for arguments in (("compare", first.name, name), ("runs",)):
        done = finished.raq_here(*arguments, "--results", str(store.root), "--html", str(tmp_path / "page.html"))
        assert done.returncode == 0, done.stderr
        text = (tmp_path / "page.html").read_text()
        assert "<script>alert" not in text
        assert "&lt;script&gt;alert(2)" in text
    clear_error(finished.raq_here("runs", "--results", str(store.root), "--html", str(tmp_path)), 2)


def test_thumbnails_are_of_what_fp32_is_least_sure(finished: Workplace) -> None:
    """128 of the 203 test images, as they are, and by torch's own answer those with the smallest margins."""
    store = Store(finished.folder / "results")
    records = [read_json(path) for path in store.root.glob("stages/evaluate-*/record.json")]
    kept = [record for record in records if "thumbnails" in record["results"]]
    assert [(record["settings"]["kind"], record["results"]["thumbnails"]) for record in kept] == [("fp32", 128)]
    found = read_thumbnails(store, kept[0])
    assert found is not None
    scope: dict[str, Any] = {}
    exec((finished.folder / "tiny_user.py").read_text(), scope)
    images = scope["data"]()[2]
    assert (found.images == images[found.places]).all()
    artifact = next(
        path.parent / "artifact.pt2"
        for path in store.root.glob("stages/lower-*/record.json")
        if read_json(path)["settings"]["candidate"] == "fp32"
    )
    data = kept[0]["settings"]["data"]
    mean, std = (np.float32(data[key]).reshape(3, 1, 1) for key in ("mean", "std"))
    logits = np.sort(raq.load_artifact(artifact)((images.astype(np.float32) / 255 - mean) / std), axis=1)
    margins = logits[:, -1] - logits[:, -2]
    others = np.setdiff1d(np.arange(203), found.places)
    assert margins[found.places].max() <= margins[others].min() + 1e-4
    png = found.png(int(found.places[3]))
    assert png is not None
    assert (np.asarray(Image.open(io.BytesIO(png))).transpose(2, 0, 1) == images[found.places[3]]).all()
    assert found.png(int(others[0])) is None


def test_doctor(workplace: Workplace) -> None:
    done = workplace.raq_here("doctor", "--json")
    findings = {finding["name"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert findings["torch"]["value"].startswith("2.")
    assert findings["C++ compiler"]["state"] == "ok"
    assert done.returncode == 0
    assert "data set digits" in workplace.raq_here("doctor").stdout
