"""One entry in a table is enough: a made-up kind of stage and a made-up runtime are planned, run, recorded, printed.

And what each kind of stage imports while it runs for real is what its fingerprint covers.
"""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from one_machine import Machine
from workplace import make_workplace

from raq import environment
from raq.artifact import runtimes
from raq.artifact.runtimes import Runtime
from raq.plan.facts import Facts
from raq.plan.fingerprints import EXEMPT, ROOT, modules_of_kind
from raq.plan.kinds import KINDS, StageKind
from raq.plan.prepare import prepare
from raq.plan.requirements import check_results
from raq.plan.stages import _Plan
from raq.report.live import RunDisplay

HERE = Path(__file__).parent
BENCH = ("bench.rounds=1", "bench.batch_sizes=[1]", "bench.repetitions=3", "bench.warmup=1")
SMALL = ("train.epochs=1", "qat=null", *BENCH)


@pytest.fixture
def machine(tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    place = make_workplace(tmp_path, own_cache)
    monkeypatch.chdir(place.folder)
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]))
    return Machine(place, *SMALL)


def test_a_made_up_kind_of_stage(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = StageKind("count", "made_up:count_stage", ("torch",), "made_up:count_in_words")
    monkeypatch.setitem(KINDS, "count", kind)

    def planned(question: str) -> dict:
        prepared = prepare(machine.place.experiment, list(SMALL))
        plan = _Plan(prepared.experiment, Facts(prepared.data, environment.machine()))
        plan.stages = {stage.name: stage for stage in prepared.plan}
        plan.add("count/all", "count", "quantize", {"question": question}, {"weights": "train"})
        return plan.stages

    stage = planned("how many?")["count/all"]
    assert stage.fingerprint != planned("why?")["count/all"].fingerprint
    assert stage.fingerprint == planned("how many?")["count/all"].fingerprint
    monkeypatch.setattr(machine, "plan", lambda *overrides: planned("how many?"))
    machine.do("train")
    results = machine.do("count/all")
    assert results == {"tensors": 14, "asked": "how many?"}
    record = machine.store.read("count", stage.fingerprint)
    assert record is not None
    assert list(record["files"]) == ["names.txt"]
    output = io.StringIO()
    display = RunDisplay()
    display.begin([stage], {"count/all": "has not run"}, output)
    display.stage("count/all", {"state": "done", "duration_s": 1.0, "results": results})
    assert "count/all: done: 14 tensors" in output.getvalue()


def test_a_made_up_runtime(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("lower", "load", "read", "read_metadata", "recognises")
    entry = Runtime("saved", "artifact.saved", ("none",), ("cpu",), alone="made_up_alone",
                    **{name: f"made_up:{name}" for name in names})  # fmt: skip
    for name in ("saved", "inductor"):  # what is asked for is what it stands in for
        monkeypatch.setitem(runtimes.RUNTIMES, name, entry)
    plan = machine.plan("ptq=null")
    assert plan["lower/fp32"].settings["runtime"] == "saved"
    assert plan["bench/cpu"].settings["runtimes"] == {"fp32": "saved"}
    require = prepare(machine.place.experiment, [*SMALL, "ptq=null"]).experiment.require
    found = {}
    for name in ("train", "lower/fp32", "evaluate/fp32", "bench/cpu"):
        found[name] = machine.do(name, "ptq=null")
        check_results(plan[name], found[name], require)
    assert found["lower/fp32"]["runtime"] == "saved"
    assert (machine.folder(plan["lower/fp32"]) / "artifact.saved").is_file()
    assert [row["step"] for row in found["evaluate/fp32"]["parity"]] == ["reloaded"]
    assert found["evaluate/fp32"]["parity"][0]["against"] == "lowered"
    assert found["evaluate/fp32"]["load_s"] > 0
    assert {row["runtime"] for row in found["bench/cpu"]["rows"]} == {"eager", "saved"}


SEEN = """
import json, sys
from pathlib import Path
from one_machine import Machine
from workplace import Workplace

machine = Machine(Workplace(Path(sys.argv[1]), Path(sys.argv[2])), *sys.argv[3:])
seen = {}
for name, stage in machine.plan().items():
    for module in [m for m in sys.modules if m.startswith("raq.")]:
        del sys.modules[module]  # so that what this stage imports is imported anew
    from raq.stages.dispatch import run_stage
    import raq.plan.kinds
    before = {m for m in sys.modules if m.startswith("raq.")}
    call = machine.call({**machine.plan()}, name)
    for module in [m for m in sys.modules if m.startswith("raq.") and m not in before]:
        del sys.modules[module]
    results = run_stage(call, lambda progress: None)
    seen.setdefault(stage.kind, []).extend(m for m in sys.modules if m.startswith("raq."))
    machine.keep(stage, results)
print(json.dumps(seen))
"""


@pytest.mark.slow
def test_what_a_stage_imports_while_it_runs_is_what_its_fingerprint_covers(tmp_path: Path, own_cache: Path) -> None:
    """Every kind, run for real: modules of raq that were loaded, less those that are exempt, are all covered."""
    place = make_workplace(tmp_path, own_cache)
    sweep = "sweep: {ptq: {calibration.size: [16, 32]}, qat: {lr: [0.001]}, trials: 2, layers: {candidates: 1}}"
    place.experiment.write_text(f"{place.experiment.read_text()}\n{sweep}\n")
    given = ["data.validation_fraction=0.2", "train.epochs=1", "qat.epochs=1", *BENCH]
    done = subprocess.run(
        [sys.executable, "-c", SEEN, str(place.folder), str(own_cache), *given],
        cwd=place.folder, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(HERE.parent)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    assert set(seen) == set(KINDS) - {"weights"}
    for kind, loaded in seen.items():
        counted = {m for m in loaded if ROOT.joinpath(*m.split(".")[1:]).with_suffix(".py").is_file()}
        exempt = {m for m in counted if any(m == name or m.startswith(f"{name}.") for name in EXEMPT)}
        missing = counted - exempt - set(modules_of_kind(kind))
        assert not missing, f"{kind} imports what its fingerprint does not cover"
