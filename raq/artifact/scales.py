"""The scales of a weight's channels in a file that does not keep their names: known by the digest of their numbers."""

import hashlib
from dataclasses import replace

from torch import Tensor
from torch.export import ExportedProgram

from raq.artifact.generated_code import GeneratedCode


def bytes_digest(content: bytes) -> str:
    """SHA-256."""
    return hashlib.sha256(content).hexdigest()


def name_scales(code: GeneratedCode, program: ExportedProgram) -> GeneratedCode:
    """The code with each call's scale called as in the quantized program that it was lowered from; None if unknown.

    What is read from a file knows the scales of a weight's channels by their digest alone.
    """
    tensors = {**program.state_dict, **program.constants}
    names: dict[str, list[str]] = {}
    for name, tensor in tensors.items():
        if isinstance(tensor, Tensor) and tensor.ndim == 1 and tensor.is_floating_point():
            names.setdefault(bytes_digest(tensor.detach().float().contiguous().numpy().tobytes()), []).append(name)
    found = [names.get(call.weight_scale or "", []) for call in code.calls]
    calls = [
        replace(call, weight_scale=known[0] if len(known) == 1 else None)
        for call, known in zip(code.calls, found, strict=True)
    ]
    return replace(code, calls=calls)
