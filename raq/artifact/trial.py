"""Running an artifact that is checked, in a process of its own: does it answer, and the same for any batch?"""

import math
from pathlib import Path
from typing import TYPE_CHECKING

from raq.artifact.checked import Checked, Trial
from raq.artifact.executed import KnownLayer
from raq.artifact.metadata import Metadata
from raq.artifact.runtimes import in_parts
from raq.artifact.sizes import Ledger
from raq.errors import StageError
from raq.experiment.inputs import Inputs
from raq.model.parity import sqnr_db

if TYPE_CHECKING:
    from raq.artifact.isolated import IsolatedProcess

MIN_DB_BETWEEN_BATCHES = 20.0


def try_batches(own: Path, path: Path, found: Checked, metadata: Metadata, sizes: Ledger) -> None:
    """Load it in an isolated process and try batches of 1 and 3; what is wrong is added."""
    import torch

    from raq.artifact.isolated import IsolatedProcess
    from raq.model.inputs import random_inputs

    inputs = metadata.inputs
    if inputs is None:
        found.problems.append("its input is not known (raq did not make it), so that it cannot be tried")
        return
    given = random_inputs(inputs, 3)
    try:
        with IsolatedProcess(own, metadata.device) as process:
            network = in_parts(process, min(metadata.max_batch or 3, 3))
            three = network(*given)
            single = torch.cat([network(*(value[n : n + 1] for value in given)) for n in range(3)])
            again = network(*given)
            _ask_what_ran(process, inputs, found, sizes)
    except StageError as error:
        found.problems.append(error.message.replace(str(own), str(path)))
        return
    if not torch.isfinite(three).all() or not torch.isfinite(single).all():
        found.problems.append("it gives logits that are not finite")
    elif not torch.equal(three, again):
        found.problems.append("it gives other logits for the same images when run again")
    between = sqnr_db(three.numpy(), single.numpy())
    if between is not None and between < MIN_DB_BETWEEN_BATCHES:
        found.problems.append(f"image by image it computes something else than for three at once ({between:.1f} dB)")
    loaded = process.loaded
    found.ran = Trial(process.runtime.name, loaded.load_s, loaded.resident_bytes, math.prod(three.shape[1:]), between)


def _ask_what_ran(process: "IsolatedProcess", inputs: Inputs, found: Checked, sizes: Ledger) -> None:
    """Add which kernels it executes, where that can be known; StageError if it ends meanwhile."""
    from raq.artifact.account import int8_launches, launched, what_ran

    counted = [KnownLayer(layer.name, layer.macs, layer.int8) for layer in found.layers if layer.macs is not None]
    total = found.total_macs
    if total is None and len(counted) == len(found.layers):
        total = sum(layer.macs for layer in counted)  # of a stranger's: all that its code calls
    if process.device == "cuda" and process.runtime.reports != "itself":
        kernels = process.launches(inputs)
        found.int8_launches = int8_launches(kernels) if kernels else None
        found.executed = launched(kernels, total, counted) or found.executed
        return
    executed = what_ran(process, inputs, [entry.shape for entry in sizes.constants], total, counted)
    if executed is not None:
        found.executed = executed
