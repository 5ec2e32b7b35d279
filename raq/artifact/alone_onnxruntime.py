"""How a process without raq loads an ONNX file: with ONNX Runtime alone. Run by alone.py; imports no raq."""

import json
import re
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

FOREIGN = {"torchao", "onnx", "onnxscript"}  # what must not be needed
FROM_FLOATS = ("DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "QAttention")  # they quantize what they read themselves
NEW_NAME = re.compile(
    r"(_token_\d+|_nchwc|/duplicated|/MatMulAddFusion)*_kernel_time$"
)  # after what the file calls a node
LOADED = SimpleNamespace()  # what `account` needs


def prepare(threads: int) -> None:
    """Import ONNX Runtime before the load is timed."""
    import onnxruntime

    LOADED.options = options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1


def load(path: str) -> Any:
    """The file as a function of the network's inputs [n, ...]. RuntimeError if damaged."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, LOADED.options, providers=["CPUExecutionProvider"])
    LOADED.path = path
    return lambda *inputs: torch.from_numpy(session.run(None, fed(session, inputs))[0])


def fed(session: Any, inputs: Any) -> dict[str, Any]:
    """The inputs by the names that the file gives them."""
    names = (given.name for given in session.get_inputs())
    return {name: value.numpy() for name, value in zip(names, inputs, strict=True)}


def account(*inputs: Any) -> list[dict[str, Any]]:
    """The kernels that ran for a batch, as ONNX Runtime's own profile has them.

    Each with the nodes of the file that it computes, what it is called, and whether it computes in int8.
    """
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        options = LOADED.options
        options.enable_profiling, options.profile_file_prefix = True, str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(LOADED.path, options, providers=["CPUExecutionProvider"])
        session.run(None, fed(session, inputs))
        events = json.loads(Path(session.end_profiling()).read_text())
    found = []
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            types = [next(iter(entry)) for entry in event["args"].get("input_type_shape", [])]
            operator = event["args"]["op_name"]
            found.append(
                {
                    "nodes": [NEW_NAME.sub("", event["name"])],
                    "kernel": f"{operator} {types[0] if types else ''}".strip(),
                    "int8": types[:1] in (["uint8"], ["int8"]) or operator in FROM_FLOATS,
                }
            )
    return found
