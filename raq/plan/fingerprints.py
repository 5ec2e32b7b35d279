"""What a stage's outcome depends on beside its settings and inputs: the code that it runs, the libraries that it uses.

When a stage starts to run another file, that is added to CODE. Imports neither torch nor ray.
"""

import ast
import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from raq.store.files import short_digest

TRAINING = (
    "stages/call.py",
    "stages/train.py",
    "model/zoo.py",
    "model/dataset.py",
    "model/sources.py",
    "model/cache.py",
    "model/user_code.py",
    "model/augmentation.py",
    "model/batch_norm.py",
    "model/training.py",
    "model/checkpoints.py",
)
QUANTIZING = (
    "stages/ptq.py",
    "quantize/export.py",
    "quantize/unshare.py",
    "quantize/quantizers.py",
    "quantize/convert.py",
    "model/parity.py",
    "quantize/arithmetic.py",
    "quantize/qat_batch_norm.py",
    "quantize/stochastic_depth.py",
    "model/evaluation.py",
)
# What each kind of stage runs, below raq/.
CODE: dict[str, tuple[str, ...]] = {
    "weights": ("stages/call.py", "stages/train.py", "model/zoo.py", "model/user_code.py"),
    "train": (*TRAINING, "cluster/ray_train.py"),
    "ptq": (*TRAINING, *QUANTIZING, "quantize/ptq.py"),
    "sweep": (
        *TRAINING,
        *QUANTIZING,
        "quantize/ptq.py",
        "quantize/ranges.py",
        "artifact/inductor.py",
        "stages/ptq_sweep.py",
        "stages/trials.py",
        "artifact/generated_code.py",
        "sweep/ptq.py",
        "statistics.py",
        "cluster/ray_tune.py",
    ),
    # one trial of a sweep, whatever is made of all of them
    "trials": (
        *TRAINING,
        *QUANTIZING,
        "quantize/ptq.py",
        "quantize/ranges.py",
        "artifact/inductor.py",
        "stages/ptq_sweep.py",
        "stages/trials.py",
    ),
    "qat": (
        *TRAINING,
        *QUANTIZING,
        "quantize/qat.py",
        "quantize/qat_ranges.py",
        "cluster/ray_train.py",
        "stages/qat_sweep.py",
    ),
    "qat_sweep": (
        *TRAINING,
        *QUANTIZING,
        "quantize/qat.py",
        "quantize/qat_ranges.py",
        "stages/qat_sweep.py",
        "stages/trials.py",
        "sweep/qat.py",
        "statistics.py",
        "cluster/ray_train.py",
        "cluster/ray_tune.py",
        "cluster/ray_tune_qat.py",
    ),
    "qat_trials": (
        *TRAINING,
        *QUANTIZING,
        "quantize/qat.py",
        "quantize/qat_ranges.py",
        "stages/qat_sweep.py",
        "stages/trials.py",
    ),
    "layer_sweep": (
        *TRAINING,
        *QUANTIZING,
        "quantize/ptq.py",
        "quantize/ranges.py",
        "artifact/inductor.py",
        "artifact/generated_code.py",
        "stages/layer_sweep.py",
        "stages/trials.py",
        "sweep/layers.py",
        "statistics.py",
        "cluster/ray_tune.py",
    ),
    "layer_trials": (
        *TRAINING,
        *QUANTIZING,
        "quantize/ptq.py",
        "quantize/ranges.py",
        "artifact/inductor.py",
        "stages/layer_sweep.py",
        "stages/trials.py",
    ),
    "lower": (
        *TRAINING,
        "stages/deployment.py",
        "quantize/export.py",
        "quantize/unshare.py",
        "quantize/convert.py",
        "quantize/qat_batch_norm.py",
        "quantize/stochastic_depth.py",
        "quantize/arithmetic.py",
        "artifact/generated_code.py",
        "artifact/cpp.py",
        "artifact/elf.py",
        "artifact/executorch.py",
        "artifact/audit.py",
        "artifact/judgement.py",
        "artifact/sizes.py",
        "model/parity.py",
        "model/evaluation.py",
        "artifact/inductor.py",
    ),
    "evaluate": (
        *TRAINING,
        "stages/deployment.py",
        "model/evaluation.py",
        "artifact/inductor.py",
        "artifact/audit.py",
        "quantize/export.py",
        "quantize/convert.py",
        "quantize/arithmetic.py",
        "artifact/executed.py",
        "artifact/judgement.py",
        "artifact/executorch.py",
        "artifact/isolated.py",
        "model/parity.py",
    ),
    "bench": (
        "stages/call.py",
        "stages/deployment.py",
        "model/zoo.py",
        "model/user_code.py",
        "artifact/inductor.py",
        "artifact/generated_code.py",
        "artifact/executorch.py",
        "bench/latency.py",
        "bench/clocks.py",
        "bench/nearest.py",
        "bench/noise.py",
        "bench/launcher.py",
        "bench/rows.py",
        "bench/contender.py",
        "statistics.py",
    ),
}
LIBRARIES: dict[str, tuple[str, ...]] = {
    "weights": ("torch", "torchvision"),
    "train": ("torch", "torchvision", "numpy"),
    "ptq": ("torch", "torchvision", "torchao", "numpy"),
    "sweep": ("torch", "torchvision", "torchao", "numpy"),
    "qat": ("torch", "torchvision", "torchao", "numpy"),
    "layer_sweep": ("torch", "torchvision", "torchao", "numpy"),
    "qat_sweep": ("torch", "torchvision", "torchao", "numpy", "optuna"),
    "lower": ("torch", "torchvision", "torchao"),
    "evaluate": ("torch", "numpy"),
    "bench": ("torch", "torchvision"),
}


MAX_SHOWN = 40


def depends_on(content: Mapping[str, Any]) -> dict[str, str]:
    """What a fingerprint covers, by name: values as they are if short, else their digest's beginning."""
    found: dict[str, str] = {}

    def add(name: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                add(f"{name}/{key}" if name else str(key), inner)
            return
        text = json.dumps(value, sort_keys=True)
        found[name] = text if len(text) <= MAX_SHOWN else f"#{short_digest(value)}"

    add("", content)
    return found


@cache
def code_digest(paths: Iterable[str]) -> str:
    """SHA-256 of the code in these files below raq/, as syntax trees: comments, docstrings and layout do not count."""
    root = Path(__file__).parents[1]
    found = hashlib.sha256()
    for path in paths:
        tree = _WithoutText().visit(ast.parse((root / path).read_text()))
        found.update(ast.dump(tree).encode())
    return found.hexdigest()


class _WithoutText(ast.NodeTransformer):
    """Drops statements that are nothing but a string: docstrings, and the texts below a schema's keys."""

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if text else node
