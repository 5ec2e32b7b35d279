"""Doing one stage in this process."""

from pathlib import Path

from raq.lazy import resolve
from raq.plan.kinds import KINDS
from raq.stages.call import Call, Progress, Results


def run_stage(call: Call, progress: Progress) -> Results:
    """Do one stage in this process; its results are plain values, its files are in `call.folder`."""
    import torch

    torch.set_num_threads(call.cpus)
    Path(call.folder).mkdir(parents=True, exist_ok=True)
    results: Results = resolve(KINDS[call.kind].run)(call, progress)
    return results
