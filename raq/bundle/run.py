"""This model with its runtime alone: needs what requirements.txt names, and nothing of raq.

`python run.py` runs it on the stored examples and prints what it gives; in a program: `from run import load`.
"""

import hashlib
import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ABOUT: dict[str, Any] = json.loads((HERE / "metadata.json").read_text(encoding="utf-8"))


def examples() -> tuple[list[Any], Any]:
    """The stored inputs, arrays [n, ...] in the order in which the model takes them, and the output that it gave."""
    import numpy as np

    with np.load(HERE / ABOUT["examples"]["file"], allow_pickle=False) as stored:
        return [stored[f"input_{number}"] for number in range(len(ABOUT["inputs"]))], stored["output"]


def load(threads: int | None = None) -> Callable[..., Any]:
    """The model: a function of its inputs, arrays [n, ...] in the order of metadata.json, to its output [n, ...].

    threads: for what the runtime computes; None: as many as metadata.json says. ValueError if the file is not the one
    that was evaluated.
    """
    import numpy as np

    path = HERE / ABOUT["file"]
    if hashlib.sha256(path.read_bytes()).hexdigest() != ABOUT["sha256"]:
        raise ValueError(f"{path}: its SHA-256 is not that of metadata.json: not the file that was evaluated")
    network = runpy.run_path(str(HERE / "loader.py"))["load"](str(path), threads or ABOUT["threads"], ABOUT["device"])
    types = [np.dtype(one["dtype"]) for one in ABOUT["inputs"]]

    def model(*inputs: Any) -> Any:
        arrays = [np.ascontiguousarray(value, dtype) for value, dtype in zip(inputs, types, strict=True)]
        most = ABOUT["max_batch"] or len(arrays[0])
        parts = [network(*(each[at : at + most] for each in arrays)) for at in range(0, len(arrays[0]), most)]
        return np.concatenate(parts)

    return model


if __name__ == "__main__":
    sys.path[:] = [place for place in sys.path if Path(place or ".").resolve() != HERE]  # libraries are elsewhere
    given, _ = examples()
    output = load()(*given)
    print(f"{len(output)} samples in, {output.dtype} {list(output.shape)} out")
    names = ABOUT["class_names"] or []
    if ABOUT["classes"] and output.ndim == 2:
        said = ", ".join(names[at] if at < len(names) else str(at) for at in output.argmax(1).tolist())
        print("classes:", "".join(letter if letter.isprintable() else "?" for letter in said))
