"""What will be done: the stages of an experiment, each with a fingerprint, and why it is fresh or stale.

A fingerprint covers all that can change a stage's outcome and nothing else: its part of the experiment, its inputs'
fingerprints, the data's digest, the code of the stage (without comments and docstrings), the versions of the libraries
it uses and, for lower and bench, the machine. Imports neither torch nor ray.
"""

import ast
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from raq.environment import has_vnni, versions
from raq.experiment import Experiment, Resources
from raq.records import Record, Store

Settings = dict[str, Any]
Pool = Literal["train", "quantize", "bench"]

# What each kind of stage runs, below raq/; a folder means every file in it.
CODE: dict[str, tuple[str, ...]] = {
    "weights": ("model/zoo.py",),
    "train": ("model/zoo.py", "model/data.py", "model/augmentation.py", "model/normalization.py", "model/training.py"),
    "ptq": (
        "model/zoo.py",
        "model/data.py",
        "model/augmentation.py",
        "quantize/capture.py",
        "quantize/quantizers.py",
        "quantize/ptq.py",
        "quantize/conversion.py",
    ),
    "qat": (
        "model/zoo.py",
        "model/data.py",
        "model/augmentation.py",
        "model/training.py",
        "quantize/capture.py",
        "quantize/quantizers.py",
        "quantize/qat.py",
        "quantize/conversion.py",
    ),
    "lower": ("model/zoo.py", "quantize/capture.py", "quantize/audit.py", "quantize/artifact.py"),
    "evaluate": ("model/data.py", "model/augmentation.py", "model/evaluation.py"),
    "bench": ("bench",),
}
LIBRARIES: dict[str, tuple[str, ...]] = {
    "weights": ("torch", "torchvision"),
    "train": ("torch", "torchvision"),
    "ptq": ("torch", "torchvision", "torchao"),
    "qat": ("torch", "torchvision", "torchao"),
    "lower": ("torch", "torchao"),
    "evaluate": ("torch",),
    "bench": ("torch",),
}


@dataclass(frozen=True)
class Stage:
    """One thing to do. inputs: role -> the name of an earlier stage; settings: plain values, all fingerprinted."""

    name: str
    kind: str
    pool: Pool
    settings: Settings
    inputs: dict[str, str]
    fingerprint: str
    resources: Resources
    workers: int = 1


@dataclass(frozen=True)
class Facts:
    """What a plan depends on besides the experiment.

    data: `Dataset.describe()`; machine: `environment.machine()` of where stages run; weights: SHA-256 of the weights
    file, if there is one; sources: SHA-256 of the files of the user's own functions, by name.
    """

    data: Settings
    machine: Settings
    weights: str | None = None
    sources: dict[str, str | None] = field(default_factory=dict)


def devices(experiment: Experiment, gpu_count: int) -> tuple[str, ...]:
    """The devices to deploy to: those asked for, or, for auto, the CPU and a GPU where there is one."""
    asked = experiment.bench.devices
    if asked == "auto":
        return ("cpu", "cuda") if gpu_count else ("cpu",)
    return tuple(dict.fromkeys(asked))


def make_plan(experiment: Experiment, facts: Facts) -> list[Stage]:
    """The stages, each after its inputs."""
    plan: dict[str, Stage] = {}
    common = {
        "model": experiment.model.name,
        "seed": experiment.seed,
        "data": _data_settings(experiment, facts),
        "sources": facts.sources,
    }
    pools = {
        "train": experiment.resources.train,
        "quantize": experiment.resources.quantize,
        "bench": experiment.resources.bench,
    }

    def add(
        name: str, kind: str, pool: Pool, settings: Settings, inputs: Mapping[str, str] = {}, workers: int = 1
    ) -> None:
        content = {
            "kind": kind,
            "settings": settings,
            "inputs": {role: plan[stage].fingerprint for role, stage in inputs.items()},
            "code": code_digest(CODE[kind]),
            "libraries": versions(LIBRARIES[kind]),
        }
        fingerprint = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        plan[name] = Stage(name, kind, pool, settings, dict(inputs), fingerprint, pools[pool], workers)

    if facts.weights is None:
        add(
            "train",
            "train",
            "train",
            {**common, "train": experiment.train.model_dump(mode="json")},
            workers=experiment.train.workers,
        )
    else:
        add("train", "weights", "quantize", {**common, "weights": facts.weights})
    _add_candidates(experiment, facts, common, add)
    _add_deployment(experiment, facts, common, add)
    return list(plan.values())


def _add_candidates(experiment: Experiment, facts: Facts, common: Settings, add: Any) -> None:
    """The stages that make quantized programs."""
    reduce_range = not has_vnni(facts.machine["features"])
    for name, section in (("ptq", experiment.ptq), ("qat", experiment.qat)):
        if section is not None:
            settings = {**common, name: section.model_dump(mode="json"), "reduce_range": reduce_range}
            qat_workers = experiment.qat.workers if name == "qat" and experiment.qat else 1
            add(name, name, "train" if name == "qat" else "quantize", settings, {"weights": "train"}, qat_workers)


def _add_deployment(experiment: Experiment, facts: Facts, common: Settings, add: Any) -> None:
    """The stages that lower, evaluate and measure every candidate on every device."""
    machine = {key: facts.machine[key] for key in ("cpu", "architecture", "features")}
    where = devices(experiment, len(facts.machine["gpus"]))
    suffix = {device: "" if device == "cpu" else f"/{device}" for device in where}
    for candidate in experiment.candidates:
        source = {"weights": "train"} if candidate == "fp32" else {"program": candidate}
        for device in where:
            settings = {
                **common,
                "candidate": candidate,
                "device": device,
                "runtime": "inductor",
                "machine": {**machine, "gpus": facts.machine["gpus"] if device == "cuda" else []},
                "int8_mac_share": None if candidate == "fp32" else experiment.require.int8_mac_share,
            }
            add(
                f"lower/{candidate}{suffix[device]}",
                "lower",
                "quantize" if device == "cpu" else "bench",
                settings,
                source,
            )
        lowered = {"artifact": f"lower/{candidate}{suffix[where[0]]}"}
        add(
            f"evaluate/{candidate}",
            "evaluate",
            "quantize" if where[0] == "cpu" else "bench",
            {"data": common["data"], "candidate": candidate, "device": where[0]},
            lowered,
        )
    for device in where:
        bench = experiment.bench.model_dump(mode="json", exclude={"devices"})
        inputs = {"weights": "train", **{c: f"lower/{c}{suffix[device]}" for c in experiment.candidates}}
        settings = {
            "bench": bench,
            "device": device,
            "machine": facts.machine,
            "model": experiment.model.name,
            "classes": facts.data["classes"],
            "image_shape": facts.data["image_shape"],
            "cpus": experiment.resources.bench.cpus,
            "sources": common["sources"],
        }
        add(f"bench/{device}", "bench", "bench", settings, inputs)


def _data_settings(experiment: Experiment, facts: Facts) -> Settings:
    """What of the data a stage depends on: contents and choices, not where the files lie."""
    chosen = experiment.data.model_dump(mode="json", exclude={"root"})
    return {**chosen, **{key: facts.data[key] for key in ("digest", "classes", "image_shape", "mean", "std")}}


@cache
def code_digest(paths: Iterable[str]) -> str:
    """SHA-256 of the code in these files below raq/, as syntax trees: comments, docstrings and layout do not count."""
    root = Path(__file__).parent
    digest = hashlib.sha256()
    for path in paths:
        files = sorted((root / path).glob("*.py")) if (root / path).is_dir() else [root / path]
        for file in files:
            tree = ast.parse(file.read_text())
            for node in ast.walk(tree):
                body = getattr(node, "body", None)
                if isinstance(body, list):
                    node.body = [  # type: ignore[attr-defined]
                        child
                        for child in body
                        if not (
                            isinstance(child, ast.Expr)
                            and isinstance(child.value, ast.Constant)
                            and isinstance(child.value.value, str)
                        )
                    ]
            digest.update(ast.dump(tree).encode())
    return digest.hexdigest()


def stale_stages(plan: list[Stage], store: Store, fresh: bool = False) -> dict[str, str]:
    """The stages to run, in order, each with why; `fresh` re-runs all."""
    stale: dict[str, str] = {}
    latest = _latest_fingerprints(store)
    for stage in plan:
        waiting = [role for role in stage.inputs.values() if role in stale]
        if fresh:
            stale[stage.name] = "asked for with --fresh"
        elif store.find(stage.kind, stage.fingerprint) is None:
            if waiting:
                stale[stage.name] = f"after {', '.join(waiting)}"
            else:
                stale[stage.name] = "has changed" if stage.name in latest else "has not run"
        elif waiting:
            stale[stage.name] = f"after {', '.join(waiting)}"
    return stale


def _latest_fingerprints(store: Store) -> dict[str, Record]:
    """The stages of the newest readable run."""
    from raq.records import read_json

    folders = store.run_folders()
    stages: dict[str, Record] = read_json(folders[-1] / "run.json")["stages"] if folders else {}
    return stages
