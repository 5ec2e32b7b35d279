"""How contenders are called on a GPU, and who else is at work there. Not run on a GPU yet.

FP32 on a GPU is two things: since Ampere tensor cores multiply floats rounded to 10 bits (TF32), which torch allows for
convolutions unless told otherwise. And a package's kernels may be started one by one, or as a CUDA graph, all at once,
which at small batches is most of the time. So contenders differ in both (`ways`), and none is compared with less than
the fastest of the others.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from raq.bench.messages import ContenderSettings
from raq.bench.rows import Round
from raq.environment import gpu_state
from raq.experiment.measurement import Bench

WARM_UP_CALLS = 3  # before a graph is captured, as torch's documentation does
# of nvidia-smi's clocks_event_reasons: hardware slowdown, software and hardware thermal slowdown, power brake
SLOWED = {0x8: "hardware slowdown", 0x20: "heat (software)", 0x40: "heat (hardware)", 0x80: "power brake"}


def ways(contenders: Iterable[ContenderSettings], protocol: Bench) -> list[ContenderSettings]:
    """Each contender in every way in which it is called on a GPU: FP32 in TF32 too, packages as CUDA graphs too."""
    found: list[ContenderSettings] = []
    for one in contenders:
        gpu = one.device == "cuda"
        both = gpu and one.fp32 and protocol.tf32 and one.runtime != "tensorrt"  # its engines are built without it
        rounded = [one, replace(one, tf32=True)] if both else [one]
        found += rounded
        if gpu and one.runtime != "eager" and protocol.cuda_graphs:
            found += [replace(each, graph=True) for each in rounded]
    return found


def allow_tf32(allowed: bool) -> None:
    """Whether this process multiplies floats in TF32, in convolutions and in matrix products alike."""
    torch.backends.cudnn.allow_tf32 = allowed
    torch.backends.cuda.matmul.allow_tf32 = allowed


def used_bytes(device: torch.device) -> int:
    """Of the GPU's memory, by all processes: the weights of a package are not torch's own allocator's."""
    free, total = torch.cuda.mem_get_info(device)
    return total - free


def captured(network: Callable[..., Tensor], inputs: Sequence[Tensor]) -> Callable[..., Tensor]:
    """The network as a CUDA graph for inputs of these shapes, which a call copies to where the graph reads them."""
    places = [one.clone() for one in inputs]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP_CALLS):
            network(*places)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        answer = network(*places)

    def replay(*given: Tensor) -> Tensor:
        for place, one in zip(places, given, strict=True):
            place.copy_(one)
        graph.replay()
        return answer

    return replay


def state(device: str) -> list[dict[str, Any]] | None:
    """`gpu_state`, of what is measured on a GPU."""
    return gpu_state() if device == "cuda" else None


def disturbance(before: Sequence[dict[str, Any]] | None, after: Sequence[dict[str, Any]] | None, own: int) -> str:
    """What slowed the GPUs down between two readings of `gpu_state`, in words; empty where nothing is known to have.

    own: how many processes of this measurement compute there; the least of what is seen more than those is foreign.
    """
    found: set[str] = set()
    for gpu in (*(before or ()), *(after or ())):
        mask = int(gpu["throttle_reasons"] or "0", 16)
        found |= {f"clocks lowered: {why}" for bit, why in SLOWED.items() if mask & bit}
        if (gpu["processes"] or 0) > own:
            found.add("other processes")
    return ", ".join(sorted(found))


def judge(rounds: Iterable[Round], before: Sequence[dict[str, Any]] | None, own: int) -> None:
    """Mark the samples of rounds that are just over as disturbed, where the GPUs were; before: their state then."""
    why = disturbance(before, gpu_state(), own + torch.cuda.is_initialized())  # this process may hold a context too
    for one in rounds if why else ():
        for name, tries in one.attempts.items():
            one.attempts[name] = [*tries[:-1], replace(tries[-1], disturbed=True, gpu=why)]
