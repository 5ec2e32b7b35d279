"""All that needs a GPU, in pieces of a few minutes; those whose record is there are left out. Started by tests/gpu/run.

    tests/gpu/run --out FOLDER [--device cuda] [--piece NAME]      (cpu: a rehearsal, small)

It needs torch, torchvision, and the wheels that tests/gpu/wheels names; no Ray. every-shape, layer-N: int8 layers
against the integer reference, bit for bit; by tile, beside bfloat16. make-NAME: packages, in a folder beside the
records. resnet18-cifar, resnet50: FP32, TF32, bfloat16, float16 and int8, packages one by one and as CUDA graphs,
measured as raq measures, with the kernels that a profiler saw, and TensorRT's float16 and int8 where it is installed.
published: FP32 eager, PTQ and QAT at batch 128, by the protocol of published tables too. A piece that finds something
wrong keeps what it found, fails, and is done again. Not run on a GPU yet.
"""

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from raq.artifact.account import INT8_KERNELS
from raq.artifact.isolated import IsolatedProcess
from raq.artifact.runtimes import RUNTIMES
from raq.bench.latency import measure
from raq.bench.messages import ContenderSettings
from raq.bench.on_gpu import captured, ways
from raq.environment import available_cpus, environment, gpu_state
from raq.errors import StageError, first_line
from raq.experiment.inputs import image_input
from raq.experiment.measurement import Bench
from raq.experiment.ptq import Calibration
from raq.kernels.launch import Tile, convolve, tile_of
from raq.kernels.reference import Epilogue, Geometry, conv2d
from raq.lazy import resolve
from raq.model.inputs import random_inputs
from raq.model.parity import sqnr_db
from raq.model.zoo import build_model
from raq.quantize import convert, ptq, qat
from raq.quantize.export import export_for_lowering
from raq.quantize.half import half_program
from raq.store.files import read_json, write_json

LAYERS = {  # channels, side, outputs, kernel, stride
    "3x3, 64": (64, 56, 64, 3, 1), "3x3, 256": (256, 14, 256, 3, 1), "3x3, 512": (512, 7, 512, 3, 1),
    "1x1, 256 to 64": (256, 56, 64, 1, 1), "1x1, 512 to 2048": (512, 7, 2048, 1, 1), "7x7, 3": (3, 224, 64, 7, 2),
}  # fmt: skip
TILES = [Tile(m, n, k, warps, stages) for m, n in ((64, 64), (128, 64), (128, 128), (256, 128)) for k in (64, 128)
         for warps, stages in ((4, 3), (8, 4))]  # fmt: skip
NETWORKS = {"resnet18-cifar": ("resnet18-cifar", 10, 32), "resnet50": ("torchvision:resnet50", 1000, 224)}
CALLS, BATCHES = 20, (1, 32, 128, 512)
BUDGET_S = {"resnet18-cifar": 200.0, "resnet50": 360.0}  # with twelve processes a launch, so that all fits half an hour
PROBLEM, TRIED_BATCHES = "problem", (1, 7, 32)
MIN_DB = 10.0  # int8 against FP32: the weights are random
MIN_SAME_DB = 25.0  # a package for a GPU against its program on the CPU, in which a sum may be rounded otherwise
REHEARSED: dict[str, Any] = {"batch_sizes": (1,), "precision": None, "rounds": 2, "round_ms": 0.0, "budget_s": 20.0}


def milliseconds(call: Callable[[], Any], device: str) -> float:
    """Of one call, the mean of CALLS after one that is not counted; on a GPU as one CUDA graph, by events: starting a
    kernel from Python may take longer than it runs."""
    if device == "cpu":
        call()
        begun = time.perf_counter()
        for _ in range(CALLS):
            call()
        return 1000 * (time.perf_counter() - begun) / CALLS

    def several() -> Tensor:
        return [call() for _ in range(CALLS)][-1]

    replay = captured(several, [])
    replay()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    replay()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end)) / CALLS


def every_shape(device: str, folder: Path) -> dict[str, Any]:
    """Odd shapes, groups and every end of a kernel against the reference, bit for bit (kernels/interpreted.py)."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "kernels"))
    from interpreted import compare

    def compute(data: Tensor, weight: Tensor, after: Epilogue, where: Geometry, tile: Tile | None) -> Tensor:
        if device == "cpu":
            return conv2d(data, weight, after, where)
        return convolve(data, weight, after, where, tile, direct=True)

    found = compare(compute, device)
    return {**found, PROBLEM: f"not what the reference computes: {found['wrong']}" if found["wrong"] else ""}


def layer(name: str, device: str, folder: Path) -> dict[str, Any]:
    """A layer: every value that of the reference, milliseconds by tile, the shipped one first, and of bfloat16."""
    channels, full, outputs, size, stride = LAYERS[name]
    batch, side = (128, full) if device == "cuda" else (1, min(full, 14))
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    data = torch.randint(-127, 128, (batch, channels, side, side), dtype=torch.int8, device=device)
    data = data.contiguous(memory_format=torch.channels_last)
    weight = torch.randint(-127, 128, (outputs, size, size, channels), dtype=torch.int8, device=device)
    scale = torch.full((outputs,), 1 / (73 * 73 * (channels * size * size) ** 0.5), device=device)
    after = Epilogue(scale, torch.randn(outputs, device=device), relu=True, inverse_scale=40.0)
    where = Geometry([stride] * 2, [size // 2] * 2)
    wanted = torch.cat([conv2d(part, weight, after, where) for part in data.split(16)])
    shipped = tile_of(channels, outputs, wanted.shape[2] * wanted.shape[3])

    def call(tile: Tile) -> Tensor:
        if device == "cpu":
            return conv2d(data, weight, after, where)
        return convolve(data, weight, after, where, tile, direct=True)

    tiles: dict[str, dict[str, Any]] = {}
    for tile in dict.fromkeys([shipped, *(TILES if device == "cuda" else [])]):
        try:
            equal = torch.equal(call(tile), wanted)
            tiles[str(tile)] = {"equal": equal, "ms": milliseconds(partial(call, tile), device)}
        except Exception as error:  # a tile may need more shared memory than there is
            tiles[str(tile)] = {"error": first_line(error)[:200]}
    wrong = [name for name, found in tiles.items() if found.get("equal") is False]
    if "error" in tiles[str(shipped)]:
        wrong.append(f"{shipped}, which is shipped: {tiles[str(shipped)]['error']}")
    half = nn.Conv2d(channels, outputs, size, stride, size // 2).to(device, torch.bfloat16)
    half = half.to(memory_format=torch.channels_last).eval()
    images = data.to(torch.bfloat16)
    with torch.no_grad():  # the convolution alone is the least that any compiler needs; int8 has the ReLU in its kernel
        alone, both = milliseconds(lambda: half(images), device), milliseconds(lambda: half(images).relu_(), device)
    return {"layer": name, "batch": batch, "shipped": str(shipped), "tiles": tiles,
            "bf16_ms": alone, "bf16_and_relu_ms": both,
            PROBLEM: f"tiles that do not compute what the reference does: {wrong}" if wrong else ""}  # fmt: skip


def int8_program(network: nn.Module, example: Tensor, device: str, *, trained: bool = False) -> ExportedProgram:
    """The network for int8 kernels of the device; trained: as QAT leaves it, though nothing was trained."""
    backend = "cuda" if device == "cuda" else "x86"
    if trained:
        graph = qat.prepare_qat(network, example, backend, reduce_range=False)
        qat.set_graph_mode(graph, training=False, norms=False)
    else:
        graph = ptq.prepare(network, example, backend, Calibration(observer="minmax"), reduce_range=False)
    with torch.no_grad():
        graph(torch.randn(32, *example.shape[1:]))
    return convert.convert(graph, example)


def outputs_of(package: Path) -> Path:  # of its program, on the CPU
    return package.with_suffix(".outputs.pt")


def contenders(name: str, kinds: tuple[str, ...], device: str, records: Path) -> list[ContenderSettings]:
    """FP32 in eager mode, and packages of these kinds of a network whose weights are random."""
    model, classes, side = NETWORKS[name]
    torch.manual_seed(0)
    network, example = build_model(model, classes).eval(), torch.randn(4, 3, side, side)
    (folder := records / "packages").mkdir(exist_ok=True)
    weights = folder / f"{name}.pt"
    torch.save(network.state_dict(), weights)
    make: dict[str, Callable[[], ExportedProgram]] = {
        "fp32": lambda: export_for_lowering(network, example),
        "bf16": lambda: half_program(network, example, "bfloat16"),
        "fp16": lambda: half_program(network, example, "float16"),
        "ptq": lambda: int8_program(network, example, device),
        "qat": lambda: int8_program(network, example, device, trained=True),
    }
    threads = len(available_cpus()) if device == "cpu" else 1
    inputs = (image_input((3, side, side)),)

    def settings(candidate: str, runtime: str, path: Path) -> ContenderSettings:
        return ContenderSettings(candidate, runtime, device, str(path), inputs, threads, model, classes, None,
                                 fp32=candidate == "fp32")  # fmt: skip

    found = [settings("fp32", "eager", weights)]
    for kind in kinds:
        program, _, other = kind.partition("-")
        runtime = RUNTIMES[other or "inductor"]
        path = folder / f"{name}-{kind}{Path(runtime.file_name).suffix}"
        if not path.is_file():
            about = {"kind": "half" if program in ("bf16", "fp16") else program, "candidate": kind,
                     "inputs": [one.plain() for one in inputs], "batch_sizes": list(BATCHES)}  # fmt: skip
            new = path.with_name(f"new{path.suffix}")
            made = make[program]()
            if program in ("ptq", "qat"):  # a CPU may not compute in halves; lowering moves the program to the device
                torch.save(made.module()(*random_inputs(inputs, TRIED_BATCHES[1])).detach(), outputs_of(path))
            resolve(runtime.lower)(made, new, about, device, max(BATCHES))
            new.replace(path)
        found.append(settings(kind, runtime.name, path))
    return found


def kinds_on(device: str) -> tuple[str, ...]:
    kinds: tuple[str, ...] = ("fp32", "bf16", "fp16", "ptq") if device == "cuda" else ("fp32", "ptq")
    if device == "cuda" and find_spec("tensorrt") is not None:  # its wheels are too large to be carried
        kinds += ("fp16-tensorrt", "ptq-tensorrt")
    return kinds


def packages(name: str, device: str, folder: Path) -> dict[str, Any]:
    """Compiled, in a piece of their own, as compiling takes minutes."""
    return {"made": [Path(one.path).name for one in contenders(name, kinds_on(device), device, folder)]}


def timed(entrants: list[ContenderSettings], protocol: Bench) -> dict[str, Any]:
    """What raq measures of them."""
    found = measure(ways(entrants, protocol), protocol, available_cpus(), lambda share, text: None)
    found.pop("samples")
    for row in found["rows"]:
        print(json.dumps({key: row[key] for key in ("candidate", "runtime", "batch_size", "p50_ms", "speedup")}),
              flush=True)  # fmt: skip
    return found


def network(name: str, device: str, folder: Path) -> dict[str, Any]:
    """A network in FP32, halves and int8: latencies by batch size and way of calling, and which kernels ran."""
    on_gpu = device == "cuda"
    entrants = contenders(name, kinds_on(device), device, folder)
    kernels, distances, same, right = {}, {}, {}, {}
    for one in entrants[1:]:
        with IsolatedProcess(Path(one.path), device) as process:
            for batch in TRIED_BATCHES:
                images = random_inputs(one.inputs, batch)
                wanted = right.setdefault(batch, process(*images)).numpy()  # of FP32, the first
                distances[f"{one.candidate}, batch {batch}"] = sqnr_db(wanted, process(*images).numpy())
            if (meant := outputs_of(Path(one.path))).is_file():
                found = process(*random_inputs(one.inputs, TRIED_BATCHES[1])).numpy()
                same[one.candidate] = sqnr_db(torch.load(meant, weights_only=True).numpy(), found)
            if on_gpu:
                asks = process.account if process.runtime.reports == "itself" else process.launches
                kernels[one.candidate] = [kernel.model_dump() for kernel in asks(one.inputs)]
    if any(db is not None and db < MIN_DB for which, db in distances.items() if which.startswith("ptq")):
        raise StageError(f"{name}: int8 is not what FP32 is: SQNR in dB {distances}", "its times would mean nothing")
    wrong = [f"{which}: {db} dB from its program" for which, db in same.items()
             if on_gpu and db is not None and db < MIN_SAME_DB]  # fmt: skip
    if on_gpu and not any(kernel["name"].startswith(INT8_KERNELS) for kernel in kernels["ptq"]):
        wrong.append("ptq: no int8 kernel of raq's was seen")
    asked = {"batch_sizes": BATCHES, "budget_s": BUDGET_S[name], "precision": 0.01} if on_gpu else REHEARSED
    times = timed(entrants, Bench.model_validate(asked))
    return {"kernels": kernels, "sqnr_db": distances, "same_sqnr_db": same, **times, PROBLEM: "; ".join(wrong)}


def published(device: str, folder: Path) -> dict[str, Any]:
    """FP32 in eager mode, PTQ and QAT at batch 128, in the way of published tables and in raq's."""
    entrants = contenders("resnet18-cifar", ("fp32", "ptq", "qat"), device, folder)
    own = {"batch_sizes": (128,), "budget_s": 90.0} if device == "cuda" else REHEARSED
    as_published = {"protocol": "published", "batch_sizes": (128,) if device == "cuda" else (1,)}
    return {name: timed(entrants, Bench.model_validate(asked))
            for name, asked in (("published", as_published), ("interleaved", own))}  # fmt: skip


PIECES: dict[str, Callable[[str, Path], dict[str, Any]]] = {
    "every-shape": every_shape,
    **{way: partial(do, net) for net in NETWORKS for way, do in ((f"make-{net}", packages), (net, network))},
    "published": published,
    **{f"layer-{number}": partial(layer, name) for number, name in enumerate(LAYERS)},
}  # fmt: skip


def main() -> None:
    """Every piece whose record is not there; one that fails is said, and the others go on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--piece", choices=tuple(PIECES))
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        sys.exit("--device cuda: torch sees no GPU here; --device cpu rehearses")
    given.out.mkdir(parents=True, exist_ok=True)
    failed = []
    for name, piece in PIECES.items():
        path = given.out / f"{given.device}-{name}.json"
        done = path.is_file() and not read_json(path).get(PROBLEM)
        if done or given.piece not in (None, name):
            continue
        begun = time.perf_counter()
        try:
            found = piece(given.device, given.out)
        except Exception as error:
            traceback.print_exc()
            failed.append(f"{name}: {first_line(error)}")
            continue
        record = {"environment": environment(), "torch": torch.__version__, "gpus": gpu_state(), **found,
                  "seconds": time.perf_counter() - begun, "device": given.device}  # fmt: skip
        write_json(path, record)
        print(f"{name}: {record['seconds']:.0f} s, {path}", flush=True)
        if found.get(PROBLEM):
            failed.append(f"{name}: {found[PROBLEM]}")
    if failed:
        sys.exit("\n".join(failed))


if __name__ == "__main__":
    main()
