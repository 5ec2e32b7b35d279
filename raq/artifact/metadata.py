"""What an artifact says of itself: what torch's compiler wrote, and under METADATA_KEY what raq did. No torch here.

It may be a stranger's: a value that makes no sense counts as not there.
"""

from dataclasses import dataclass, field
from typing import Any

from raq.experiment.inputs import Inputs, image_input, read_inputs

METADATA_KEY = "raq"
LONGEST_SIDE = 4096  # pixels of an image that is still one
MAX_MACS = 10**18


@dataclass(frozen=True)
class Metadata:
    """Read by name. values: as they were found in the artifact."""

    values: dict[str, Any] = field(default_factory=dict)

    @property
    def ours(self) -> dict[str, Any]:
        """What raq wrote there; empty in a stranger's."""
        found = self.values.get(METADATA_KEY)
        return found if isinstance(found, dict) else {}

    @property
    def device(self) -> str:
        """What it was compiled for: cpu, cuda."""
        own = self.ours.get("device")
        return str(self.values.get("AOTI_DEVICE_KEY", own if own in ("cpu", "cuda") else "cpu"))

    @property
    def architecture(self) -> str | None:
        """The machine's architecture that it was compiled for, as `platform.machine()` has it."""
        return str(self.values.get("AOTI_MACHINE") or "") or None

    @property
    def instruction_sets(self) -> list[str]:
        """The instruction sets that its code uses, as torch names them."""
        return str(self.values.get("AOTI_CPU_ISA", "")).split()

    @property
    def candidate(self) -> str | None:
        """fp32, ptq, qat, ...: which candidate of an experiment it is."""
        found = self.ours.get("candidate")
        return None if found is None else str(found)

    @property
    def is_fp32(self) -> bool:
        """Whether it says that nothing of it is quantized."""
        return self.ours.get("kind", self.candidate) == "fp32"

    @property
    def is_half(self) -> bool:
        """Whether it says that it computes in floats of 16 bits."""
        return bool(self.ours.get("kind") == "half")

    @property
    def is_weight_only(self) -> bool:
        """Whether it says that its weights alone are quantized."""
        return bool(self.ours.get("kind") == "weight_only")

    @property
    def runtime(self) -> str | None:
        """What executes it, where its format does not say that."""
        found = self.ours.get("runtime")
        return None if found is None else str(found)

    @property
    def torch(self) -> str | None:
        """The version of torch that made it."""
        found = self.ours.get("torch")
        return None if found is None else str(found)

    @property
    def max_batch(self) -> int | None:
        """The largest batch that it takes; None where it does not say."""
        found = self.ours.get("max_batch")
        return found if type(found) is int and found > 0 else None

    @property
    def macs(self) -> int | None:
        """Multiply-accumulates that the FP32 network does for an image."""
        found = self.ours.get("macs")
        return found if type(found) is int and 0 < found < MAX_MACS else None

    @property
    def float_by_choice(self) -> bool:
        """Whether it says that some layers are in float by choice."""
        return bool(self.ours.get("float_by_choice"))

    @property
    def inputs(self) -> Inputs | None:
        """What it is called with; None if it does not say. An older one says [C, H, W] of images alone."""
        if "inputs" in self.ours:
            return read_inputs(self.ours["inputs"])
        found = self.ours.get("input")
        sizes = tuple(found) if isinstance(found, list) and all(type(size) is int for size in found) else ()
        return (image_input(sizes),) if len(sizes) == 3 and all(0 < size <= LONGEST_SIDE for size in sizes) else None
