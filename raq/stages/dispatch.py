"""Every kind of stage by its name, and how one is done. torch is imported inside the functions."""

from collections.abc import Callable
from pathlib import Path

from raq.stages.call import Call, Progress, Results
from raq.stages.deployment import bench_stage, evaluate_stage, lower_stage
from raq.stages.layer_sweep import layer_sweep_stage
from raq.stages.ptq import ptq_stage
from raq.stages.ptq_sweep import sweep_stage
from raq.stages.qat_sweep import qat_sweep_stage
from raq.stages.train import load_weights_stage, qat_stage, train_stage

STAGES: dict[str, Callable[[Call, Progress], Results]] = {
    "weights": load_weights_stage,
    "train": train_stage,
    "ptq": ptq_stage,
    "sweep": sweep_stage,
    "qat_sweep": qat_sweep_stage,
    "layer_sweep": layer_sweep_stage,
    "qat": qat_stage,
    "lower": lower_stage,
    "evaluate": evaluate_stage,
    "bench": bench_stage,
}


def run_stage(call: Call, progress: Progress) -> Results:
    """Do one stage in this process; its results are plain values, its files are in `call.folder`."""
    import torch

    torch.set_num_threads(call.cpus)
    Path(call.folder).mkdir(parents=True, exist_ok=True)
    return STAGES[call.kind](call, progress)
