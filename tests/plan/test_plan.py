"""Fingerprints: what changes a stage changes them, and nothing else does."""

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError

from raq.environment import Machine, settings_of
from raq.errors import UserError
from raq.experiment.inputs import image_input
from raq.experiment.schema import Experiment
from raq.plan import stages as planning
from raq.plan.expected import expected_s
from raq.plan.facts import DataFound, Facts, why_not_lowered
from raq.plan.fitting import fit_to_data
from raq.plan.stages import Stage, make_plan
from raq.plan.stale import earlier_runs, stale_stages
from raq.running import delete_work_on_old_inputs
from raq.stages.call import Call
from raq.store.files import read_json
from raq.store.local import Store
from raq.store.settings import (
    ArtifactSettings,
    BenchSettings,
    DataSettings,
    HalfSettings,
    LayerSweepSettings,
    LowerSettings,
    ModeSettings,
    ParitySettings,
    PtqSettings,
    PtqSweepSettings,
    QatSettings,
    QatSweepSettings,
    Settings,
    TrainSettings,
    WeightsSettings,
)

DATA = DataFound("d", "here", 10, 90, 10, 10, 90, [image_input((3, 32, 32)).plain()], [3, 32, 32], [0.5] * 3, [0.5] * 3)
MACHINE = Machine("a cpu", "x86_64", ["avx512_vnni"], 2)


def planned(facts: Facts | None = None, **given: object) -> dict[str, Stage]:
    experiment = Experiment.model_validate({"name": "x", **given})
    found = facts or Facts(DATA, MACHINE)
    fitted, _ = fit_to_data(experiment, found.data)
    return {stage.name: stage for stage in make_plan(fitted, found)}


def changed(a: dict[str, Stage], b: dict[str, Stage]) -> set[str]:
    return {name for name in a if name not in b or a[name].fingerprint != b[name].fingerprint}


EVERYTHING = {
    "train", "ptq", "qat", "lower/fp32", "lower/ptq", "lower/qat", "evaluate/fp32", "evaluate/ptq", "evaluate/qat",
    "bench/cpu",
}  # fmt: skip
PTQ = {"ptq", "lower/ptq", "evaluate/ptq", "bench/cpu"}
QAT = {"qat", "lower/qat", "evaluate/qat", "bench/cpu"}
LOWERED = {name for name in EVERYTHING if name.split("/")[0] in ("lower", "evaluate", "bench")}


def test_stages_come_after_their_inputs() -> None:
    seen: set[str] = set()
    for name, stage in planned().items():
        assert set(stage.inputs.values()) <= seen
        seen.add(name)
    assert seen == EVERYTHING


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"bench": {"rounds": 7}}, {"bench/cpu"}),
        ({"resources": {"bench": {"cpus": 1}}}, LOWERED),  # compiled for so many threads
        ({"bench": {"streams": 2}}, {"bench/cpu"}),
        ({"seed": 1}, EVERYTHING),
        ({"train": {"epochs": 3}}, EVERYTHING),
        ({"model": {"name": "resnet20-cifar"}}, EVERYTHING),
        ({"data": {"test_limit": 5}}, {"evaluate/fp32", "evaluate/ptq", "evaluate/qat"}),
        ({"data": {"image_size": 64}}, set()),
        ({"data": {"train_limit": 5}}, EVERYTHING),
        ({"ptq": {"calibration": {"size": 32}}}, PTQ | QAT),  # which starts from it
        ({"qat": {"lr": 0.1}}, QAT),
        ({"require": {"int8_mac_share": 0.5}}, set()),
        ({"resources": {"train": {"gpus": 1}}}, EVERYTHING),
        ({"require": {"max_drop": 0.5}}, set()),
        ({"select": {"margin": {"accuracy": 1.0, "speed": 0.1}, "batch_size": 1}}, set()),
        ({"data": {"root": "/elsewhere"}}, set()),
        ({"resources": {"train": {"cpus": 1}}}, set()),
        ({"name": "another"}, set()),
    ],
)
def test_what_a_change_makes_stale(given: dict[str, object], expected: set[str]) -> None:
    assert changed(planned(), planned(**given)) == expected


def test_the_margin_makes_a_sweep_of_calibrations_stale() -> None:
    """It decides which calibration is chosen; what was tried is not tried again."""
    sweep = {"sweep": {"ptq": {"calibration.size": [16, 32]}}}
    wide = {"select": {"margin": {"accuracy": 1.0}}}
    stale = changed(planned(**sweep), planned(**sweep, **wide))
    assert stale == {"sweep/ptq", *PTQ, *QAT}
    assert changed(planned(**sweep), planned(**sweep, select={"margin": {"speed": 0.5}})) == set()


def test_facts_that_count() -> None:
    other_cpu = Facts(DATA, replace(MACHINE, cpu="another"))
    assert changed(planned(), planned(other_cpu)) == LOWERED
    assert changed(planned(), planned(Facts(replace(DATA, digest="e"), MACHINE))) == EVERYTHING
    no_vnni = planned(Facts(DATA, replace(MACHINE, features=[])))
    assert no_vnni["ptq"].settings["reduce_range"] is True
    sources = [Facts(DATA, MACHINE, sources={"m:f": digest}) for digest in ("1", "2")]
    assert changed(planned(sources[0]), planned(sources[1])) == EVERYTHING


def test_weights_replace_training() -> None:
    given = planned(Facts(DATA, MACHINE, weights="w"))
    assert given["train"].kind == "weights"
    assert changed(given, planned(Facts(DATA, MACHINE, weights="other"))) == EVERYTHING


def test_libraries_count(monkeypatch: pytest.MonkeyPatch) -> None:
    before = planned()
    real = planning.versions
    monkeypatch.setattr(
        planning, "versions", lambda names: {**real(names), **({"torchao": "9"} if "torchao" in names else {})}
    )
    assert changed(before, planned()) == EVERYTHING - {"train"}, "training does not use torchao"


def test_candidates_left_out_and_a_gpu() -> None:
    assert set(planned(qat=None)) == EVERYTHING - {"qat", "lower/qat", "evaluate/qat"}
    with_gpu = planned(Facts(DATA, replace(MACHINE, gpus=["H200"])))
    assert {"lower/ptq/cuda", "bench/cuda"} <= set(with_gpu)
    assert with_gpu["evaluate/ptq"].inputs == {"artifact": "lower/ptq"}
    assert set(planned(Facts(DATA, replace(MACHINE, gpus=["H200"])), bench={"devices": ["cpu"]})) == EVERYTHING


def test_the_backend_of_gpus_is_lowered_on_gpus_alone() -> None:
    """Where there is none, its graph is evaluated, and the reason is said."""
    given = {"ptq": {"backend": "cuda"}, "qat": None}
    here = planned(**given)
    assert here["evaluate/ptq"].inputs == {"program": "ptq"}
    assert not [name for name in here if name.startswith("lower/ptq")]
    there = planned(Facts(DATA, replace(MACHINE, gpus=["H200"])), **given)
    assert {"lower/ptq/cuda", "lower/fp32", "lower/fp32/cuda"} <= set(there)
    assert "lower/ptq" not in there
    assert there["evaluate/ptq"].inputs == {"artifact": "lower/ptq/cuda"}
    assert set(there["bench/cuda"].inputs) == {"weights", "fp32", "ptq"}
    assert why_not_lowered("cuda", "x86_64", 0, "auto") == "its int8 kernels are a GPU's, and none was found"
    assert why_not_lowered("cuda", "x86_64", 1, ["cpu"]) is not None
    assert why_not_lowered("cuda", "x86_64", 1, "auto") is None


def test_backends_decide_where_and_how_a_candidate_is_deployed(monkeypatch: pytest.MonkeyPatch) -> None:
    """arm is lowered on Arm alone; xnnpack's .pte is made anywhere, has no GPU, and depends on ExecuTorch's version."""
    given = {"ptq": {"backend": "arm"}, "qat": {"backend": "xnnpack"}}
    here = planned(Facts(DATA, replace(MACHINE, features=[], gpus=["H200"])), **given)
    assert {"lower/ptq", "lower/ptq/cuda", "lower/qat/cuda"} & set(here) == set()
    assert here["evaluate/ptq"].inputs == {"program": "ptq"}
    assert here["bench/cpu"].settings["runtimes"] == {"fp32": "inductor", "qat": "executorch"}
    assert set(here["bench/cuda"].inputs) == {"weights", "fp32"}
    assert [here[name].settings["reduce_range"] for name in ("ptq", "qat")] == [False, False]
    gpu_alone = planned(Facts(DATA, replace(MACHINE, gpus=["H200"])), bench={"devices": ["cuda"]}, **given)
    assert gpu_alone["evaluate/qat"].inputs == {"program": "qat"}
    assert why_not_lowered("xnnpack", "x86_64", 1, ["cuda"]) is not None
    on_arm = planned(Facts(DATA, replace(MACHINE, architecture="aarch64")), **given)
    assert on_arm["evaluate/ptq"].inputs == {"artifact": "lower/ptq"}
    before = planned(**given)
    real = planning.versions
    monkeypatch.setattr(
        planning, "versions", lambda names: {**real(names), **({"executorch": "9"} if "executorch" in names else {})}
    )
    assert changed(before, planned(**given)) == QAT
    assert changed(planned(), planned(ptq={"backend": "arm"})) == PTQ | QAT, "no x86 graph to start from any more"


def test_qat_starts_from_the_ptq_of_its_backend_and_from_none_where_there_is_none() -> None:
    start = {"weights": "train", "ptq": "ptq"}
    assert planned()["qat"].inputs == start
    sweep: dict[str, Any] = {"qat": {"weight_lr": [0.01, 0.1]}}
    searched = planned(sweep=sweep)
    assert searched["qat"].inputs == {**start, "sweep": "sweep/qat"}
    assert searched["sweep/qat"].inputs == start
    for given in (
        {"qat": {"start": "fp32"}}, {"qat": {"freeze_bn_after": 1.0}}, {"qat": {"backend": "arm"}}, {"ptq": None},
        {"ptq": {"mode": ["dynamic"]}},
    ):  # fmt: skip
        assert planned(**given)["qat"].inputs == {"weights": "train"}, given
    for key, values in {"freeze_bn_after": [0.5, 1.0], "lr": [0.1, 0.2], "label_smoothing": [0.0, 0.1]}.items():
        made = planned(sweep={"qat": {key: values}})
        assert made["sweep/qat"].inputs == {"weights": "train"}
        assert made["qat"].settings["qat"]["start"] == "fp32", "its trials would be all the same"
    other_calibration = planned(sweep=sweep, ptq={"calibration": {"size": 32}})
    trials = [plan["sweep/qat"].settings["trials"] for plan in (searched, other_calibration)]
    assert trials[0] != trials[1], "trials that started elsewhere are other trials"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"qat": {"start": "ptq", "freeze_bn_after": 1.0}}, "freeze_bn_after is of start: fp32"),
        ({"qat": {"start": "fp32", "weight_lr": 0.5}}, "weight_lr is of start: ptq"),
        ({"qat": {"lr": 0.1, "scale_lr": 0.5}}, "scale_lr is of start: ptq"),
        ({"qat": {"start": "ptq", "label_smoothing": 0.1}}, "label_smoothing is of targets"),
        ({"qat": {"temperature": 2.0, "distillation": 0.0}}, "qat.temperature is of distillation"),
        ({"qat": {"start": "fp32", "temperature": 2.0}}, "qat.temperature is of distillation"),
        ({"qat": {"temperature": 2.0}, "sweep": {"qat": {"lr": [0.1]}}}, "qat.temperature is of distillation"),
        (
            {"ptq": {"backend": "arm"}, "qat": None, "sweep": {"ptq": {"reduce_range": [True, False]}}},
            "reduce_range is of the backend x86",
        ),
        ({"ptq": {"calibration": {"percentile": 99.0}}}, "ptq.calibration.percentile is of the observer percentile"),
        ({"ptq": {"backend": "arm", "reduce_range": True}, "qat": None}, "reduce_range is of the backend x86"),
        ({"qat": {"start": "fp32"}, "sweep": {"qat": {"weight_lr": [0.5]}}}, "weight_lr is of start: ptq"),
        ({"sweep": {"qat": {"lr": [0.5], "weight_lr": [0.5]}}}, "leave one of them out"),
    ],
)
def test_keys_of_the_other_start_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Experiment.model_validate({"name": "x", **given})


@pytest.mark.parametrize("key", ["lr", "momentum", "label_smoothing", "freeze_observers_after"])
def test_files_that_set_keys_of_fp32_mean_what_they_meant(key: str) -> None:
    values = {"lr": 0.0005, "momentum": 0.9, "label_smoothing": 0.0, "freeze_observers_after": 2.0}
    assert Experiment.model_validate({"name": "x", "qat": {key: values[key]}}).qat.start == "fp32"
    assert Experiment.model_validate({"name": "x", "qat": {"lr": None}}).qat.start == "fp32"


def test_qat_has_the_bits_of_the_ptq_that_it_starts_from_and_calibrates_on_what_there_is() -> None:
    old = Facts(DATA, replace(MACHINE, features=[]))
    assert planned(old, ptq={"reduce_range": False})["qat"].settings["reduce_range"] is False
    assert planned(old, ptq={"reduce_range": False}, qat={"start": "fp32"})["qat"].settings["reduce_range"] is True
    assert planned(ptq={"reduce_range": True})["qat"].settings["reduce_range"] is True
    alone = planned(ptq=None)["qat"].settings
    assert alone["calibration"]["size"] == DATA.calibration_images < 256


def test_a_program_is_deployed_in_every_runtime_asked_for() -> None:
    """Each has an artifact, an evaluation and a latency; the program is made once; what is there stays up to date."""
    found = planned(lower={"runtimes": ["inductor", "openvino"]})
    names = {f"{name}-openvino" for name in ("fp32", "ptq", "qat")}
    assert set(found) == EVERYTHING | {f"{stage}/{name}" for name in names for stage in ("lower", "evaluate")}
    assert changed(planned(), found) == {"bench/cpu"}
    assert found["lower/ptq-openvino"].inputs == {"program": "ptq"}
    assert found["lower/fp32-openvino"].inputs == {"weights": "train"}
    assert found["evaluate/qat-openvino"].inputs == {"artifact": "lower/qat-openvino"}
    assert found["bench/cpu"].settings["kinds"]["fp32-openvino"] == "fp32"
    assert list(found["bench/cpu"].settings["runtimes"].items())[2:4] == [
        ("qat", "inductor"),
        ("fp32-openvino", "openvino"),
    ]
    alone = planned(lower={"runtimes": ["openvino"]})
    assert set(alone) == EVERYTHING
    assert alone["bench/cpu"].settings["runtimes"] == dict.fromkeys(("fp32", "ptq", "qat"), "openvino")
    backends = {"ptq": {"backend": "xnnpack"}, "qat": {"backend": "arm"}}
    other = planned(lower={"runtimes": ["openvino"]}, **backends)
    assert other["bench/cpu"].settings["runtimes"] == {"fp32": "openvino", "ptq": "executorch"}
    with pytest.raises(ValueError, match="for CPUs alone, and bench"):
        planned(lower={"runtimes": ["inductor", "openvino"]}, bench={"devices": ["cuda"]})
    with pytest.raises(ValueError, match="names a runtime twice"):
        planned(lower={"runtimes": ["openvino", "openvino"]})


def test_7_bits_and_gpus_are_not_for_every_runtime() -> None:
    both = {"lower": {"runtimes": ["inductor", "openvino"]}}
    old = Facts(DATA, replace(MACHINE, features=["avx2"]))
    with pytest.raises(UserError, match="openvino, whose files cannot say that activations have 7 bits"):
        planned(old, **both)
    with pytest.raises(UserError, match="ptq: reduce_range"):
        planned(ptq={"reduce_range": True}, qat=None, **both)
    assert "lower/fp32-openvino" in planned(old, ptq=None, qat=None, **both)
    gpu = Facts(DATA, replace(MACHINE, gpus=["H200"]))
    assert {"lower/ptq/cuda", "lower/ptq-openvino"} <= set(planned(gpu, **both))
    assert "lower/ptq-openvino/cuda" not in planned(gpu, **both)
    assert "bench/cuda" not in planned(gpu, lower={"runtimes": ["openvino"]})
    with pytest.raises(ValueError, match="for CPUs alone: add inductor"):
        planned(gpu, lower={"runtimes": ["openvino"]}, bench={"devices": ["cpu", "cuda"]})


def test_tensorrt_is_for_gpus() -> None:
    """Of the backend cuda, FP32 and 16 bits; each device has what runs there; without a GPU it is refused."""
    asked = {"lower": {"runtimes": ["inductor", "tensorrt"]}, "ptq": {"backend": "cuda"}, "qat": None}
    gpu = Facts(DATA, replace(MACHINE, gpus=["H200"], features=[*MACHINE.features, "avx512_bf16"]))
    found = planned(gpu, **asked, half={"dtypes": ["bfloat16"]})
    assert list(found["bench/cuda"].settings["runtimes"].items()) == [
        ("fp32", "inductor"), ("bf16", "inductor"), ("ptq", "inductor"), ("fp32-tensorrt", "tensorrt"),
        ("bf16-tensorrt", "tensorrt"), ("ptq-tensorrt", "tensorrt"),
    ]  # fmt: skip
    assert set(found["bench/cpu"].settings["runtimes"].values()) == {"inductor"}
    assert found["lower/ptq-tensorrt/cuda"].settings["max_batch"] == 128
    assert found["lower/ptq-tensorrt/cuda"].settings["batch_sizes"] == [1, 128]
    assert "batch_sizes" not in found["lower/ptq/cuda"].settings
    assert found["evaluate/ptq-tensorrt"].inputs == {"artifact": "lower/ptq-tensorrt/cuda"}
    with pytest.raises(UserError, match="tensorrt, for GPUs alone, and none was found"):
        planned(**asked)
    with pytest.raises(ValueError, match="add cuda"):
        planned(gpu, **asked, bench={"devices": ["cpu"]})
    for devices in (["cpu", "cuda"], "auto"):
        with pytest.raises(ValueError, match="add inductor"):
            planned(gpu, lower={"runtimes": ["tensorrt"]}, bench={"devices": devices})
    with pytest.raises(ValueError, match="an engine takes no more"):
        planned(gpu, **asked, bench={"batch_sizes": [256]})
    assert "lower/ptq-tensorrt/cuda" not in planned(gpu, lower=asked["lower"], qat=None), (
        "x86's programs are not for it"
    )


def test_weights_are_packed_for_the_smallest_batch_that_is_measured() -> None:
    eight, sixteen = planned(bench={"batch_sizes": [32, 8]}), planned(bench={"batch_sizes": [16, 32]})
    assert eight["lower/ptq"].settings["min_batch"] == 8
    assert changed(eight, sixteen) == LOWERED
    assert changed(eight, planned(bench={"batch_sizes": [8]})) == {"bench/cpu"}


def test_half_precision_is_a_candidate_where_the_cpu_computes_in_it() -> None:
    """Its program is made once, from the FP32 weights, and compiled by Inductor alone; nothing else changes."""
    able = Facts(DATA, replace(MACHINE, features=["avx512_vnni", "avx512_bf16"]))
    half = {"half": {"dtypes": ["bfloat16"]}, "lower": {"runtimes": ["openvino", "inductor"]}}
    found, before = planned(able, **half), planned(able, lower=half["lower"])
    assert (found["bf16"].kind, found["bf16"].inputs) == ("half", {"weights": "train"})
    assert found["lower/bf16"].inputs == {"program": "bf16"}
    assert (found["lower/bf16"].settings["kind"], found["lower/bf16"].settings["runtime"]) == ("half", "inductor")
    assert {name for name in found if name not in before} == {"bf16", "lower/bf16", "evaluate/bf16"}
    assert changed(before, found) == {"bench/cpu"}
    with pytest.raises(UserError, match=r"half\.dtypes has float16, and this CPU does not compute in it"):
        planned(able, half={"dtypes": ["bfloat16", "float16"]})
    restricted = replace(able.machine, settings={"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI"})
    with pytest.raises(UserError, match=r"half\.dtypes has bfloat16"):
        planned(replace(able, machine=restricted), **half)
    on_gpu = replace(MACHINE, gpus=["a gpu"])
    gpu = planned(Facts(DATA, on_gpu), half={"dtypes": ["float16"]}, bench={"devices": ["cuda"]})
    assert gpu["lower/fp16/cuda"].inputs == {"program": "fp16"}


def test_a_mode_that_needs_no_calibration_is_a_candidate_of_its_own() -> None:
    """From the FP32 weights, in Inductor alone; what is written about calibration does not make it stale."""
    modes = {"ptq": {"mode": ["static", "dynamic", "weight-only"]}, "lower": {"runtimes": ["openvino", "inductor"]}}
    found, before = planned(**modes), planned(lower=modes["lower"])
    assert {name for name in found if name not in before} == {
        f"{place}{name}" for place in ("", "lower/", "evaluate/") for name in ("dynamic", "weight-only")
    }
    assert changed(before, found) == {"bench/cpu"}
    assert {name: found[name].kind for name in ("dynamic", "weight-only")} == {
        "dynamic": "dynamic", "weight-only": "weight_only",
    }  # fmt: skip
    for name in ("dynamic", "weight-only"):
        assert found[name].inputs == {"weights": "train"}
        assert found[f"lower/{name}"].inputs == {"program": name}
        assert found[f"lower/{name}"].settings["runtime"] == "inductor"
    other = planned(ptq=modes["ptq"] | {"calibration": {"size": 7}}, lower=modes["lower"])
    assert not {"dynamic", "weight-only"} & changed(found, other)
    alone = planned(ptq={"mode": "dynamic"})
    assert "ptq" not in alone
    assert "lower/dynamic" in alone
    old = planned(Facts(DATA, replace(MACHINE, features=["avx2"])), ptq={"mode": "dynamic"})
    assert old["dynamic"].settings["reduce_range"] is True


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"ptq": {"mode": "dinamic"}}, "static"),
        ({"ptq": {"mode": []}}, "at least 1 item"),
        ({"ptq": {"mode": ["dynamic", "dynamic"]}}, "names one twice"),
        ({"ptq": {"mode": "dynamic", "backend": "xnnpack"}}, "the backend xnnpack quantizes in the mode static alone"),
        ({"ptq": {"mode": "dynamic"}, "lower": {"runtimes": ["openvino"]}}, "add it to lower.runtimes"),
        ({"ptq": {"mode": "weight-only"}, "bench": {"devices": ["cuda"]}}, "for CPUs alone"),
        ({"ptq": {"mode": "dynamic"}, "sweep": {"layers": {}}}, "of the mode static, which ptq.mode has not"),
    ],
)
def test_modes_that_cannot_be(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        planned(**given)


def test_what_other_tools_quantize_is_a_candidate_of_its_own() -> None:
    """From the FP32 weights, in the tool's runtime, on the calibration of ptq, which it does not change."""
    found, before = (
        planned(ptq={"others": ["nncf", "onnxruntime"], "calibration": {"size": 7}}),
        planned(ptq={"calibration": {"size": 7}}),
    )
    assert changed(before, found) == {"bench/cpu"}
    lower = found["lower/nncf"]
    assert lower.inputs == {"weights": "train"}
    assert (lower.settings["runtime"], lower.settings["quantizer"]) == ("openvino", "nncf")
    assert lower.settings["calibration"] == {"size": 7, "batch_size": 32}
    assert found["bench/cpu"].settings["kinds"]["onnxruntime"] == "ptq"
    old = Facts(DATA, replace(MACHINE, features=["avx2"]))
    assert planned(old, ptq={"others": ["onnxruntime"]})["lower/onnxruntime"].settings["reduce_range"] is True
    assert found["lower/onnxruntime"].settings["reduce_range"] is False
    with pytest.raises(ValueError, match=r"ptq\.others has nncf, for CPUs alone, and bench.devices has cuda"):
        planned(ptq={"others": ["nncf"]}, bench={"devices": ["cuda"]})
    with pytest.raises(ValueError, match="names a tool twice"):
        planned(ptq={"others": ["nncf", "nncf"]})
    assert found["bench/cpu"].settings["runtimes"]["onnxruntime"] == "onnxruntime"


def test_why_a_stage_is_stale(tmp_path: Path) -> None:
    plan = list(planned().values())
    store = Store(tmp_path)
    finish(store, plan[0])
    stale = stale_stages(plan, store)
    assert "train" not in stale
    assert stale["ptq"] == "has not run"
    assert stale["lower/ptq"] == "after ptq"
    assert stale_stages(plan, store, fresh=True)["train"] == "asked for with --fresh"


def finish(store: Store, stage: Stage, inputs: dict[str, str] | None = None, **other: object) -> Path:
    """Publish a stage as the driver does; returns its folder."""
    work = store.work_folder(stage.kind, stage.fingerprint)
    work.mkdir(parents=True)
    (work / "weights.pt").write_text("weights")
    record = {"fingerprint": stage.fingerprint, "results": {}, "input_ids": inputs or {}, **other}
    return store.publish(stage.kind, stage.fingerprint, record)


def test_an_input_made_anew_makes_stale_what_stands_on_it(tmp_path: Path) -> None:
    plan = planned()
    store = Store(tmp_path)
    folder = finish(store, plan["train"])
    first = read_json(folder / "record.json")["id"]
    finish(store, plan["ptq"], {"weights": first})
    assert {"train", "ptq"} & set(stale_stages(list(plan.values()), store)) == set()
    finish(store, plan["train"])
    stale = stale_stages(list(plan.values()), store)
    assert "train" not in stale
    assert stale["ptq"] == "an input has been made anew"


@pytest.mark.parametrize("damage", ["record.json", "weights.pt"])
def test_damaged_and_missing_files_make_stale(tmp_path: Path, damage: str) -> None:
    plan = list(planned().values())
    store = Store(tmp_path)
    folder = finish(store, plan[0])
    (folder / damage).write_text("")
    assert stale_stages(plan, store)["train"] == "its record or a file of it is damaged"
    (folder / damage).unlink()
    assert "train" in stale_stages(plan, store)
    finish(store, plan[0])
    assert "train" not in stale_stages(plan, store)


@pytest.mark.parametrize(("stale", "kept"), [({"qat"}, True), ({"train", "qat"}, False)])
def test_a_checkpoint_on_weights_that_are_made_anew_is_not_gone_on_from(
    tmp_path: Path, stale: set[str], kept: bool
) -> None:
    """An interrupted stage goes on; one whose input is damaged or gone began on other weights."""
    store, plan = Store(tmp_path), planned()
    work = store.work_folder("qat", plan["qat"].fingerprint)
    work.mkdir(parents=True)
    delete_work_on_old_inputs(plan.values(), dict.fromkeys(stale, "x"), store, fresh=False)
    assert work.exists() == kept


def write_run(store: Store, plan: dict[str, Stage], experiment: str = "x") -> None:
    """The record of a run of this plan."""
    folder = store.new_run(experiment)
    stages = {s.name: {"kind": s.kind, "fingerprint": s.fingerprint, "depends": s.depends} for s in plan.values()}
    settings = Experiment.model_validate({"name": experiment}).model_dump(mode="json")
    known = {"id": "x", "experiment": experiment, "settings": settings, "data": asdict(DATA)}
    where = {"machine": MACHINE.as_record(), "versions": {}}
    store.write_run(folder, {**known, "complete": True, "error": None, "environment": where, "stages": stages})


def test_how_long_a_stale_stage_took_last(tmp_path: Path) -> None:
    """In the newest run of the same experiment that has it; a stage that is up to date is not expected."""
    store, plans = Store(tmp_path), [planned(train={"epochs": n}) for n in (1, 2, 3)]
    for plan, took_s in zip(plans[:2], (10.0, 20.0), strict=True):
        write_run(store, plan)
        finish(store, plan["train"], duration_s=took_s)
    now = list(plans[2].values())
    assert expected_s(now, {"train", "ptq"}, earlier_runs(store), "x", store) == {"train": 20.0}
    assert expected_s(now, {"ptq"}, earlier_runs(store), "x", store) == {}
    assert expected_s(now, {"train"}, earlier_runs(store), "y", store) == {}, "another experiment's took its own time"


def test_what_has_changed_is_named(tmp_path: Path) -> None:
    """After a finished run: the user's file, a library, a variable that chooses kernels, a setting; else what is so."""
    sources = {"m:f": {"files": {"m/blocks.py": "1" * 64, "m/old.py": "2" * 64}, "distributions": {"timm": "1.0"}}}
    machine = replace(MACHINE, settings={}, compiler="g++ 12")
    store = Store(tmp_path)

    first = planned(Facts(DATA, machine, sources=sources))
    write_run(store, first)
    assert stale_stages(list(first.values()), store)["train"] == "has not finished"
    finish(store, first["train"])

    def why(facts: Facts, **given: object) -> str:
        plan = planned(facts, **given)
        return stale_stages(list(plan.values()), store)["train"]

    files, libraries = sources["m:f"].values()
    of = lambda f, d: {"m:f": {"files": f, "distributions": d}}  # noqa: E731
    assert (
        why(Facts(DATA, machine, sources=of({**files, "m/blocks.py": "3" * 64}, libraries)))
        == "m/blocks.py has changed"
    )
    assert why(Facts(DATA, machine, sources=of({**files, "m/new.py": "3" * 64}, libraries))) == "m/new.py is new"
    assert why(Facts(DATA, machine, sources=of({"m/blocks.py": "1" * 64}, libraries))) == "m/old.py is gone"
    assert why(Facts(DATA, machine, sources=of(files, {"timm": "1.1"}))) == "timm 1.0 -> 1.1"
    reported = replace(machine, settings={"ONEDNN_MAX_CPU_ISA": "AVX2"})
    assert why(Facts(DATA, reported, sources=sources)) == "ONEDNN_MAX_CPU_ISA unset -> AVX2"
    assert why(Facts(DATA, machine, sources=sources), train={"epochs": 3}) == "train.epochs 15 -> 3"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"ONEDNN_MAX_CPU_ISA": "AVX2"}, EVERYTHING),
        ({"ATEN_CPU_CAPABILITY": "avx2"}, EVERYTHING),
        ({"OMP_WAIT_POLICY": "PASSIVE"}, {"bench/cpu"}),
        ({"LD_PRELOAD": "libjemalloc.so"}, {"bench/cpu"}),
        ({"TORCHINDUCTOR_FREEZING": "0"}, LOWERED),
        ({"HOME": "/elsewhere"}, set()),
        ({"OMP_NUM_THREADS": "1"}, set()),
        ({"KMP_DUPLICATE_LIB_OK": "True", "KMP_INIT_AT_FORK": "FALSE"}, set()),  # as importing scikit-learn leaves them
    ],
)
def test_variables_that_change_an_outcome(settings: dict[str, str], expected: set[str]) -> None:
    before = planned(Facts(DATA, replace(MACHINE, settings={})))
    assert changed(before, planned(Facts(DATA, replace(MACHINE, settings=settings_of(settings))))) == expected


def test_the_compiler_and_python_count(monkeypatch: pytest.MonkeyPatch) -> None:
    before = planned(Facts(DATA, replace(MACHINE, compiler="g++ 12")))
    assert changed(before, planned(Facts(DATA, replace(MACHINE, compiler="g++ 13")))) == LOWERED
    monkeypatch.setattr(planning.platform, "python_version", lambda: "3.99.0")
    assert changed(before, planned(Facts(DATA, replace(MACHINE, compiler="g++ 12")))) == EVERYTHING


def test_an_instruction_set_that_onednn_may_not_use_reduces_ranges() -> None:
    """On a CPU with VNNI, which 8-bit activations stand on."""
    reported = replace(MACHINE, settings={"ONEDNN_MAX_CPU_ISA": "avx512_core"})
    assert planned(Facts(DATA, reported))["ptq"].settings["reduce_range"] is True
    reported = replace(MACHINE, settings={"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI"})
    assert planned(Facts(DATA, reported))["ptq"].settings["reduce_range"] is False


READ_BY: dict[str, tuple[type[Settings], ...]] = {
    "train": (TrainSettings,),
    "weights": (WeightsSettings,),
    "half": (HalfSettings, ParitySettings),
    "dynamic": (ModeSettings, ParitySettings),
    "weight_only": (ModeSettings, ParitySettings),
    "ptq": (PtqSettings, ParitySettings),
    "qat": (QatSettings, ParitySettings),
    "lower": (LowerSettings, ParitySettings),
    "evaluate": (ArtifactSettings, ParitySettings, DataSettings),
    "bench": (BenchSettings,),
    "ptq_sweep": (PtqSweepSettings,),
    "qat_sweep": (QatSweepSettings,),
    "layer_sweep": (LayerSweepSettings,),
}


def nullable(section: type[BaseModel], place: str = "") -> Iterator[str]:
    """Every key that an experiment may set to null."""
    for name, field in section.model_fields.items():
        kinds = get_args(field.annotation) or (field.annotation,)
        if type(None) in kinds:
            yield f"{place}{name}"
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from nullable(kind, f"{place}{name}.")


@pytest.mark.parametrize("key", sorted(nullable(Experiment)))
def test_stages_can_read_what_is_planned_whatever_is_null(key: str) -> None:
    """The plan writes plain values, and stages read them back by models of their own, which must allow as much."""
    given: dict[str, Any] = {
        "half": {}, "ptq": {"others": ["nncf"], "mode": ["static", "dynamic", "weight-only"]}, "sweep": {
            "ptq": {"calibration.size": [16, 32]}, "qat": {"lr": [0.1, 0.01]}, "layers": {}, "trials": 2,
        },
    }  # fmt: skip
    *sections, name = key.split(".")
    place = given
    for section in sections:
        place = place.setdefault(section, {})
    place[name] = None
    if key in ("ptq", "qat"):
        given["sweep"] = None
    able = Facts(DATA, replace(MACHINE, features=["avx512_vnni", "avx512_bf16"]))
    for stage in planned(able, **given).values():
        for model in READ_BY[stage.kind]:
            call = Call(name=stage.name, kind=stage.kind, settings=stage.settings, inputs={}, folder="", cpus=1)
            call.read(model)
