"""The audit of what is lowered for a GPU: which layers its program gives to raq's int8 operators.

The operators are the program that is compiled; which of their kernels a GPU then runs has not been read yet.
"""

from torch.export import ExportedProgram

from raq.artifact.audit import Audit, LayerAudit, audit_graph, total_macs
from raq.kernels.fusing import matches
from raq.quantize.arithmetic import NetworkMacs, operations
from raq.quantize.export import layers

NO_KERNEL = "quantized in the graph, but not in a form that an int8 kernel for GPUs computes: float"


def audit_on_gpu(program: ExportedProgram, network: NetworkMacs | None = None) -> Audit | None:
    """Each layer of a quantized program, int8 if an operator takes its place; None if none does: all is float."""
    taken = {match.layer for match in matches(program.graph)}
    if not taken:
        return None
    found = []
    for (node, _), meant in zip(layers(program.graph), audit_graph(program), strict=True):
        int8 = node in taken
        kernel = ("raq::int8_conv2d" if meant.operator == "conv" else "raq::int8_linear") if int8 else None
        reason = "" if int8 else meant.reason or NO_KERNEL
        found.append(LayerAudit(meant.name, meant.operator, meant.macs, meant.annotated, int8, kernel, reason))
    done = operations(program)
    total, unknown = total_macs(done, network)
    problem = f"the arithmetic of {', '.join(unknown)} is not known, so neither is the share" if unknown else ""
    share = sum(layer.macs for layer in found if layer.int8) / total if total else None
    kernels = {name: sum(x.kernel == name for x in found) for name in sorted({x.kernel for x in found if x.kernel})}
    return Audit(found, [operation for operation in done if not operation.layer], [], kernels, total, share, problem)
