"""The verbs as people use them: one real run, then everything that stands on its records."""

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
import torch
from workplace import Workplace

from raq.model.zoo import build_model


def clear_error(done: subprocess.CompletedProcess[str], code: int) -> str:
    """The error of a command that ended with `code`: two lines on standard error, no traceback."""
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) <= 2
    assert lines[0].startswith("raq: ")
    return done.stderr


def test_help_names_the_verbs(workplace: Workplace) -> None:
    done = workplace.raq("--help")
    assert done.returncode == 0
    assert all(verb in done.stdout for verb in ("run", "plan", "show"))


def test_unknown_verbs_and_options(workplace: Workplace) -> None:
    assert "rum" in clear_error(workplace.raq("rum"), 2)
    clear_error(workplace.raq("run"), 2)
    clear_error(workplace.raq("run", "tiny.yaml", "--sett", "x=1"), 2)


# --- a finished run ---


def test_a_run_ends_with_the_table_and_the_verdict(finished: Workplace) -> None:
    output = (finished.folder / "output.txt").read_text()
    assert "plan: 10 of 10 stages to do" in output
    assert "train: running: epoch 4: loss" in output
    assert "ptq: done" in output
    assert "\nShip " in output
    assert "\x1b" not in output, "plain lines off a terminal"
    assert "ray" not in output.lower().replace("array", ""), "Ray's own chatter is kept out"


def test_show_json_is_the_contract(finished: Workplace) -> None:
    shown = json.loads(finished.raq("show", "latest", "--json").stdout)
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
    assert ptq["artifacts"][0]["weight_bytes"] < 0.35 * fp32["artifacts"][0]["weight_bytes"]
    assert ptq["drop_points"] == pytest.approx(100 * (fp32["top1"] - ptq["top1"]))
    assert shown["verdict"]["choice"] in ("fp32", "ptq", "qat")
    assert "/tmp" not in json.dumps(shown["environment"])


def test_a_second_run_does_nothing(finished: Workplace) -> None:
    runs = sorted((finished.folder / "results" / "runs").iterdir())
    done = finished.raq("run", "tiny.yaml")
    assert done.returncode == 0
    assert "Nothing to do" in done.stdout
    assert "Ship " in done.stdout
    assert sorted((finished.folder / "results" / "runs").iterdir()) == runs


def stale(place: Workplace, *arguments: str) -> set[str]:
    done = place.raq("plan", "tiny.yaml", *arguments)
    assert done.returncode == 0, done.stderr
    return {line.split()[0] for line in done.stdout.splitlines() if " stale " in line}


def test_plan_says_what_a_change_makes_stale(finished: Workplace) -> None:
    assert stale(finished) == set()
    assert stale(finished, "--set", "bench.rounds=7") == {"bench/cpu"}
    assert len(stale(finished, "--set", "seed=1")) == 10


@pytest.mark.slow
def test_changing_the_rounds_measures_again_and_nothing_else(finished: Workplace) -> None:
    done = finished.raq("run", "tiny.yaml", "--set", "bench.rounds=7", "--set", "bench.batch_sizes=[2]")
    assert done.returncode == 0, done.stderr
    assert "plan: 1 of 10 stages to do: bench/cpu" in done.stdout
    shown = json.loads(finished.raq("show", "--json").stdout)
    assert {row["rounds"] for c in shown["candidates"] for row in c["latency"]} == {7}


def test_show_by_id_and_without_a_run(finished: Workplace, workplace: Workplace) -> None:
    first = sorted((finished.folder / "results" / "runs").iterdir())[0].name
    assert first in finished.raq("show", first).stdout
    assert "there is no run 'nothing'" in clear_error(finished.raq("show", "nothing"), 2)
    assert "there is no run here" in clear_error(workplace.raq("show"), 2)


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
    shown = json.loads(finished.raq("show", "--json").stdout)
    return next(Path(c["artifacts"][0]["path"]) for c in shown["candidates"] if c["name"] == candidate)


def test_check_names_layers_kernels_and_bytes(finished: Workplace) -> None:
    done = finished.raq("check", str(artifact_of(finished, "ptq")))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "int8 100.0% of the MACs, the file of its record" in done.stdout
    assert "qconv_pointwise" in done.stdout
    assert "ran in a fresh process with torch alone" in done.stdout
    assert "nothing is wrong with it" in done.stdout


def test_check_as_json_and_of_several(finished: Workplace, tmp_path: Path) -> None:
    moved = tmp_path / "moved.pt2"
    shutil.copy(artifact_of(finished, "qat"), moved)
    done = finished.raq("check", str(artifact_of(finished, "fp32")), str(moved), "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    fp32, qat = json.loads(done.stdout)
    assert (fp32["int8_mac_share"], qat["int8_mac_share"]) == (0.0, 1.0)
    assert fp32["vouched"] is True
    assert qat["vouched"] is None
    assert qat["ran"] is None, "nobody vouches for a file outside the results folder"
    assert [layer["name"] for layer in qat["layers"]][:2] == ["0", "3"]
    moved.write_bytes(moved.read_bytes()[:-1])
    done = finished.raq("check", str(moved))
    assert done.returncode == 1
    assert "PROBLEM: " in done.stdout
    assert "there is no such file" in clear_error(finished.raq("check", "none.pt2"), 2)


def test_the_parity_chain_is_shown(finished: Workplace) -> None:
    shown = json.loads(finished.raq("show", "--json").stdout)
    steps = {c["name"]: [row["step"] for row in c["parity"]] for c in shown["candidates"]}
    assert steps == {
        "fp32": ["fp32", "lowered", "reloaded"],
        "ptq": ["fp32", "simulated", "converted", "lowered", "reloaded"],
        "qat": ["simulated", "converted", "lowered", "reloaded"],
    }
    assert all(c["parity"][-1]["equal"] for c in shown["candidates"]), "a saved file computes what was compiled"
    assert "parity: fp32" in finished.raq("show").stdout
    ledger = shown["candidates"][1]["artifacts"][0]["ledger"]
    assert ledger["by_dtype"]["int8"] == 432 + 4608 + 512
    assert ledger["duplicates"] == []


def test_doctor(workplace: Workplace) -> None:
    done = workplace.raq("doctor", "--json")
    findings = {finding["name"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert findings["torch"]["value"].startswith("2.")
    assert findings["C++ compiler"]["state"] == "ok"
    assert done.returncode == 0
    assert "data set digits" in workplace.raq("doctor").stdout


# --- what is refused, before anything starts ---


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["resources.train.cpus=1000"], "resources.train.cpus is 1000, and the largest node has"),
        (["resources.train.gpus=1"], "needs a node with 1 GPU, and the cluster has none"),
        (["bench.devices=[cuda]"], "needs a node with 1 GPU, and the cluster has none"),
        (["train.workers=64", "resources.train.cpus=1"], "asks for 64 workers of 1 CPUs"),
        (["bench.threads=1000"], "bench.threads is 1000"),
        (["ptq.calibration.size=1000"], "ptq.calibration.size is 1000, and there are 486 training images"),
        (["data.name='tiny_user:bad_data'"], "images are float32"),
        (["model.weights=none.pt"], "none.pt cannot be read: No such file"),
    ],
)
def test_what_cannot_be_is_refused_at_once(workplace: Workplace, overrides: list[str], message: str) -> None:
    if torch.cuda.is_available() and "GPU" in message:
        pytest.skip("this machine has a GPU")
    arguments = [part for override in overrides for part in ("--set", override)]
    error = clear_error(workplace.raq("run", "tiny.yaml", *arguments, timeout=60), 2)
    assert message in error
    assert not list((workplace.folder / "results").glob("runs/*"))


def test_results_that_cannot_be_written(workplace: Workplace) -> None:
    (workplace.folder / "results").write_text("a file")
    assert "results cannot be written there" in clear_error(workplace.raq("run", "tiny.yaml"), 2)


def test_no_cluster_at_the_address(workplace: Workplace) -> None:
    error = clear_error(workplace.raq("run", "tiny.yaml", "--address", "127.0.0.1:6", timeout=120), 2)
    assert "--address 127.0.0.1:6: no Ray cluster answers" in error


# --- what fails on Ray ---


@pytest.mark.cluster
def test_errors_of_stages_come_back_as_one_line(workplace: Workplace) -> None:
    torch.save(build_model("resnet20-cifar", 4).state_dict(), workplace.folder / "other.pt")
    error = clear_error(workplace.raq("run", "tiny.yaml", "--set", "model.weights=other.pt"), 2)
    assert "does not fit tiny_user:model" in error
    assert "log:" in error
    run = workplace.raq("show")
    assert "the run is not complete" in run.stdout


def processes_of(folder: Path) -> list[str]:
    """Processes whose environment or command names this folder."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                text = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
            except OSError:
                continue
            if str(folder).encode() in text:
                found.append(f"{process.name}: {(process / 'cmdline').read_bytes()[:100]!r}")
    return found


@pytest.mark.cluster
@pytest.mark.parametrize(("number", "moment"), [(signal.SIGINT, "epoch 3:"), (signal.SIGTERM, "train: starting")])
def test_interrupted_and_continued(workplace: Workplace, number: int, moment: str) -> None:
    """A signal at that moment: 130, no process left; the next run goes on after the last finished epoch."""
    temporary = Path(tempfile.mkdtemp(prefix="raq-", dir="/tmp"))
    settings = ["--set", "train.epochs=120", "--set", "qat=null", "--set", "ptq=null", "--set", "bench.rounds=1"]
    process = subprocess.Popen(
        workplace.command("run", "tiny.yaml", *settings), cwd=workplace.folder, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(temporary)},
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if moment in line:
            break
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert error.startswith("raq: interrupted")
    deadline = time.monotonic() + 20
    while processes_of(temporary) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert processes_of(temporary) == []
    assert list(temporary.glob("raq-ray-*")) == []
    assert not list((workplace.folder / "results" / "stages").glob("*")), "nothing half-written"
    assert "the run is not complete" in workplace.raq("show").stdout
    shutil.rmtree(temporary)
    if number == signal.SIGTERM:
        return
    again = subprocess.Popen(
        workplace.command("run", "tiny.yaml", *settings), cwd=workplace.folder, stdout=subprocess.PIPE, text=True
    )
    assert again.stdout is not None
    lines = []
    for line in again.stdout:
        lines.append(line)
        if "train: done" in line:
            break
    again.send_signal(signal.SIGTERM)
    again.communicate(timeout=60)
    assert "train: done: 120 epochs" in lines[-1]
    assert not any("epoch 1:" in line for line in lines)
