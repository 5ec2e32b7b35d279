"""Some test samples with what an artifact gives for them: a copy of it elsewhere is verified by these.

torch is imported inside the functions.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from raq.stages.call import EXAMPLES, Call, Results

if TYPE_CHECKING:
    from raq.model.dataset import Dataset
    from raq.model.evaluation import Network

MAX_EXAMPLES, MAX_BYTES = 8, 2_000_000  # at least one, whatever its size


def keep_examples(call: Call, dataset: "Dataset", network: "Network") -> Results:
    """Keep the first test samples and their outputs, in one batch; how many, and with how many threads computed.

    Nothing is kept of inputs of a type that NumPy has not (bfloat16).
    """
    import torch

    from raq.model.inputs import copies

    if any(not hasattr(np, one.dtype) for one in dataset.inputs):
        return {"examples": None}
    places = np.arange(min(MAX_EXAMPLES, dataset.size("test")))
    (inputs, _), *_ = dataset.batches("test", [places], torch.device("cpu"))
    with torch.inference_mode():
        first = network(*copies(value[:1] for value in inputs))
        each = sum(value[:1].nbytes for value in (*inputs, first))
        count = max(1, min(len(places), MAX_BYTES // each))
        given = [value[:count].contiguous() for value in inputs]
        output = network(*copies(given))
    named = {f"input_{number}": value.numpy() for number, value in enumerate(given)}
    np.savez(Path(call.folder) / EXAMPLES, allow_pickle=False, output=output.float().numpy(), **named)
    return {"examples": {"count": count, "threads": call.cpus}}
