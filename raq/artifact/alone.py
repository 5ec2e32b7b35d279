"""An artifact in a process of its own, without raq: what isolated.py starts, `python -I alone.py ...`. Imports no raq.

Arguments: the file with the runtime's `load`, the artifact, the device, the number of threads, a mark for the trace,
the descriptor of the connection to the parent. The first message says how loading went. A request is the shape, 4
int64, and float32 values; the answer is the logits' shape, 2 int64, and their values. A negative batch size asks oneDNN
to report what it executes, on standard error, after a line with the mark and the batch size. A batch size of 0, with
sizes of an image, asks the runtime for its own account of what it executes for one image; the answer is JSON.
"""

import json
import os
import runpy
import struct
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

import torch


def resident_bytes() -> int | None:
    """The resident memory of this process; None where the system does not report it."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else None


def main() -> None:
    """Load the artifact and answer until the parent ends the connection."""
    loader, path, device, threads, mark, descriptor = sys.argv[1:]
    torch.set_num_threads(int(threads))
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
            shape = list(struct.unpack("4q", request[:32]))
            if shape[0] == 0:
                connection.send_bytes(json.dumps(own["account"](torch.zeros(1, *shape[1:]))).encode())
                continue
            traced = shape[0] < 0 and torch._C._verbose.mkldnn_set_verbose(1)
            shape[0] = abs(shape[0])
            images = torch.frombuffer(bytearray(request[32:]), dtype=torch.float32)
            if traced:
                os.write(2, (mark + str(shape[0]) + "\n").encode())
            logits = network(images.view(shape).to(device)).float().cpu().contiguous().numpy()
            if traced:
                torch._C._verbose.mkldnn_set_verbose(0)
            connection.send_bytes(struct.pack("2q", *logits.shape) + logits.tobytes())


if __name__ == "__main__":
    os.dup2(2, 1)  # whatever libraries print goes to standard error
    main()
