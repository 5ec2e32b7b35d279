"""An artifact in a process of its own, without raq: what isolated.py starts, `python -I alone.py ...`. Imports no raq.

Arguments: the file with the runtime's `load`, the artifact, the device, the number of threads, a mark for the trace,
the descriptor of the connection to the parent. The first message says how loading went. A request is the length of a
header, int64, the header, JSON, and the bytes of the inputs, whose types and shapes it names; the answer is the number
of dimensions of the output and its sizes, int64, and its float32 values. "do": run; trace: oneDNN reports what it
executes, on standard error, after a line with the mark and the batch size; account: the runtime says itself what it
executes; launches: torch's profiler says which kernels a GPU ran in a second call; both answer JSON.
"""

import json
import math
import os
import runpy
import struct
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch


def resident_bytes() -> int | None:
    """The resident memory of this process; None where the system does not report it."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else None


def read_request(request: bytes) -> tuple[str, list[torch.Tensor]]:
    """What is to be done, and with which inputs."""
    size = struct.unpack("q", request[:8])[0]
    header, at = json.loads(request[8 : 8 + size]), 8 + size
    inputs = []
    for dtype, shape in header["inputs"]:
        kind = getattr(torch, dtype)
        length = math.prod(shape) * kind.itemsize
        inputs.append(torch.frombuffer(bytearray(request[at : at + length]), dtype=kind).view(shape))
        at += length
    return header["do"], inputs


def launches(network: Any, given: list[torch.Tensor]) -> list[dict[str, Any]]:
    """The kernels that a GPU runs in a call, in alphabetical order, how often, and for how many milliseconds."""
    from torch.profiler import ProfilerActivity, profile

    network(*given)
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        network(*given)
        torch.cuda.synchronize()
    found = [(event.key, event.count, event.self_device_time_total / 1000) for event in seen.key_averages()]
    return [{"name": name, "count": count, "ms": ms} for name, count, ms in sorted(found)]


def main() -> None:
    """Load the artifact and answer until the parent ends the connection."""
    loader, path, device, threads, mark, descriptor = sys.argv[1:]
    torch.set_num_threads(int(threads))
    torch.backends.cudnn.allow_tf32 = False  # which torch allows of itself: FP32 is to be FP32
    own = runpy.run_path(loader)
    own["prepare"](int(threads))
    before, started = resident_bytes(), time.perf_counter()
    network = own["load"](path)
    loaded = {"load_s": time.perf_counter() - started, "torch": torch.__version__}
    after = resident_bytes()
    loaded["resident_bytes"] = None if after is None or before is None else after - before
    loaded["foreign"] = sorted({"raq", "torchvision", *own["FOREIGN"]} & set(sys.modules))
    with Connection(int(descriptor)) as connection, torch.inference_mode():
        connection.send_bytes(json.dumps(loaded).encode())
        while True:
            try:
                request = connection.recv_bytes()
            except EOFError:
                return
            what, inputs = read_request(request)
            if what == "account":
                connection.send_bytes(json.dumps(own["account"](*inputs)).encode())
                continue
            traced = what == "trace" and torch._C._verbose.mkldnn_set_verbose(1)
            given = [value.to(device) for value in inputs]
            if what == "launches":
                connection.send_bytes(json.dumps(launches(network, given)).encode())
                continue
            if traced:
                os.write(2, (mark + str(len(inputs[0])) + "\n").encode())
            output = network(*given).float().cpu().contiguous().numpy()
            if traced:
                torch._C._verbose.mkldnn_set_verbose(0)
            connection.send_bytes(struct.pack(f"{1 + output.ndim}q", output.ndim, *output.shape) + output.tobytes())


if __name__ == "__main__":
    os.dup2(2, 1)  # whatever libraries print goes to standard error
    main()
