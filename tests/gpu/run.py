"""All that needs a GPU, in pieces of a few minutes; those whose record is there are left out.

    python tests/gpu/run.py --out FOLDER [--device cuda] [--piece kernels]      (cpu: a rehearsal, small)

It needs torch, torchao, NumPy, pydantic and PyYAML, and no Ray. kernels: int8 layers against the integer reference, bit
for bit, by tile, beside bfloat16. networks: packages of FP32, bfloat16, float16 and int8, in turns, plain and as
CUDA graphs, with the kernels that a profiler saw. Not run on a GPU yet.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from raq.artifact import inductor
from raq.environment import environment, gpu_state
from raq.experiment.ptq import Calibration
from raq.kernels.fusing import with_int8_operators
from raq.kernels.launch import Tile, convolve, tile_of
from raq.kernels.reference import Epilogue, Geometry, conv2d
from raq.model.zoo import build_model
from raq.quantize import convert, ptq
from raq.quantize.export import export_for_lowering
from raq.quantize.half import half_program

LAYERS = {  # channels, side, outputs, kernel, stride
    "3x3, 64": (64, 56, 64, 3, 1), "3x3, 256": (256, 14, 256, 3, 1), "3x3, 512": (512, 7, 512, 3, 1),
    "1x1, 256 to 64": (256, 56, 64, 1, 1), "1x1, 512 to 2048": (512, 7, 2048, 1, 1), "7x7, 3": (3, 224, 64, 7, 2),
}  # fmt: skip
TILES = [Tile(m, n, k, warps, stages) for m in (64, 128) for n in (64, 128) for k in (32, 64, 128)
         for warps, stages in ((4, 3), (8, 4))]  # fmt: skip
ROUNDS, CALLS = 9, 20


def milliseconds(call: Callable[[], Any], device: str, calls: int) -> float:
    """Of one call, the mean of `calls` after one that is not counted, by events on a GPU."""
    call()
    if device == "cpu":
        begun = time.perf_counter()
        for _ in range(calls):
            call()
        return 1000 * (time.perf_counter() - begun) / calls
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(calls):
        call()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end)) / calls


def captured(call: Callable[[], Any], device: str) -> tuple[Callable[[], Any] | None, str]:
    """The call as a CUDA graph, or why there is none."""
    if device == "cpu":
        return None, "a CPU has none"
    try:
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(3):
                call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
    except Exception as error:
        return None, f"{type(error).__name__}: {error}"[:300]
    return graph.replay, ""


def kernels(device: str) -> dict[str, Any]:
    """Layers: equal to the reference, milliseconds by tile, and those of bfloat16."""
    rows = []
    for name, (channels, full, outputs, size, stride) in LAYERS.items():
        batch, side = (128, full) if device == "cuda" else (1, min(full, 14))
        data = torch.randint(-127, 128, (batch, channels, side, side), dtype=torch.int8)
        weight = torch.randint(-127, 128, (outputs, size, size, channels), dtype=torch.int8)
        scale, bias = torch.rand(outputs) * 1e-4, torch.randn(outputs)
        where = Geometry([stride] * 2, [size // 2] * 2)
        wanted = conv2d(data[:2], weight, Epilogue(scale, bias, relu=True, inverse_scale=8.0), where)
        there = [one.to(device) for one in (data.contiguous(memory_format=torch.channels_last), weight, scale, bias)]

        def layer(tile: Tile | None, given: list[Tensor] = there, where: Geometry = where) -> Tensor:
            after = Epilogue(*given[2:], relu=True, inverse_scale=8.0)
            if device == "cpu":
                return conv2d(*given[:2], after, where)
            return convolve(*given[:2], after, where, tile)

        found: dict[str, Any] = {"layer": name, "batch": batch, "chosen": str(tile_of(channels, outputs)), "tiles": {}}
        for tile in TILES if device == "cuda" else [None]:
            try:
                equal = torch.equal(layer(tile)[:2].cpu(), wanted)
                found["tiles"][str(tile)] = {"equal": equal, "ms": milliseconds(lambda t=tile: layer(t), device, CALLS)}
            except Exception as error:  # a tile may need more shared memory than there is
                found["tiles"][str(tile)] = {"error": f"{type(error).__name__}: {error}"[:200]}
        half = nn.Conv2d(channels, outputs, size, stride, size // 2).to(device, torch.bfloat16)
        half = half.to(memory_format=torch.channels_last).eval()
        images = there[0].to(torch.bfloat16)
        with torch.no_grad():
            found["bf16_ms"] = milliseconds(lambda n=half, x=images: torch.relu(n(x)), device, CALLS)
        rows.append(found)
        print(json.dumps(found), flush=True)
    return {"rows": rows}


def contenders(device: str, folder: Path) -> dict[str, Callable[[Tensor], Tensor]]:
    """resnet18-cifar, its weights random, as packages; on a CPU int8 as its graph, which no compiler there takes."""
    torch.manual_seed(0)
    network, example = build_model("resnet18-cifar", 10).eval(), torch.randn(4, 3, 32, 32)
    graph = ptq.prepare(network, example, "cuda", Calibration(observer="minmax"), reduce_range=False)
    with torch.no_grad():
        graph(torch.randn(32, 3, 32, 32))
    int8 = convert.convert(graph, example)
    programs = {
        "fp32": export_for_lowering(network, example),
        "bf16": half_program(network, example, "bfloat16"),
        **({"fp16": half_program(network, example, "float16"), "int8": int8} if device == "cuda" else {}),
    }
    found: dict[str, Callable[[Tensor], Tensor]] = {}
    for name, program in programs.items():
        inductor.lower(program, folder / f"{name}.pt2", {}, device)
        found[name] = inductor.load(folder / f"{name}.pt2")
    return found if device == "cuda" else {**found, "int8": with_int8_operators(int8).module()}


def networks(device: str, folder: Path) -> dict[str, Any]:
    """Milliseconds of a call by contender, batch and way, each the median of rounds in turns; what kernels ran."""
    ready, rows = contenders(device, folder), []
    for batch in (1, 32, 128, 512) if device == "cuda" else (1,):
        images = torch.randn(batch, 3, 32, 32, device=device)
        calls: dict[str, Callable[[], Any]] = {}
        why: dict[str, str] = {}
        with torch.no_grad():
            for name, network in ready.items():
                calls[name] = lambda n=network, x=images: n(x)
                replay, why[f"{name}, graph"] = captured(calls[name], device)
                if replay is not None:
                    calls[f"{name}, graph"] = replay
            times: dict[str, list[float]] = {name: [] for name in calls}
            for turn in range(ROUNDS if device == "cuda" else 2):
                for name in list(calls)[:: 1 if turn % 2 == 0 else -1]:
                    times[name].append(milliseconds(calls[name], device, CALLS if device == "cuda" else 2))
        for name, every in times.items():
            rows.append({"contender": name, "batch": batch, "ms": statistics.median(every), "rounds_ms": every})
            print(json.dumps(rows[-1]), flush=True)
        rows += [{"contender": name, "batch": batch, "error": reason} for name, reason in why.items() if reason]
    return {"rows": rows, "kernels": {name: profiled(call, device) for name, call in ready.items()}}


def profiled(network: Callable[[Tensor], Tensor], device: str) -> dict[str, float]:
    """Microseconds of a call by kernel, batch 32, as torch's profiler saw them."""
    from torch.profiler import ProfilerActivity, profile

    images = torch.randn(32 if device == "cuda" else 1, 3, 32, 32, device=device)
    activity = ProfilerActivity.CUDA if device == "cuda" else ProfilerActivity.CPU
    with torch.no_grad(), profile(activities=[activity]) as seen:
        network(images)
    own = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    return {event.key: float(getattr(event, own)) for event in seen.key_averages()}


def main() -> None:
    """Every piece whose record is not there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--piece", choices=("kernels", "networks"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    pieces = {"kernels": lambda: kernels(given.device), "networks": lambda: networks(given.device, given.out)}
    for name, piece in pieces.items():
        path = given.out / f"{given.device}-{name}.json"
        if path.is_file() or given.piece not in (None, name):
            continue
        begun = time.perf_counter()
        found = {**piece(), "seconds": time.perf_counter() - begun, "device": given.device}
        record = {"environment": environment(), "torch": torch.__version__, "gpus": gpu_state(), **found}
        scratch = path.with_suffix(".new")
        scratch.write_text(json.dumps(record, indent=1))
        scratch.replace(path)


if __name__ == "__main__":
    main()
