"""What really ran, asked of whatever knows: oneDNN's reports for packages, else the runtime's own account.

ONNX Runtime has its profile, OpenVINO the graph that it compiled: each says by its file's nodes which kernel computes
them, and in what. A kernel computes several nodes where they are fused.
"""

from collections.abc import Iterable, Sequence

from raq.artifact.executed import Executed, ExecutedLayer, KnownLayer, summary
from raq.artifact.isolated import IsolatedProcess, ReportedKernel
from raq.artifact.judgement import weight_sizes
from raq.artifact.runtimes import read
from raq.artifact.wrapper_code import KernelCall
from raq.experiment.inputs import Inputs


def what_ran(
    process: IsolatedProcess,
    inputs: Inputs,
    constant_shapes: Iterable[Sequence[int]],
    total_macs: int | None,
    layers: Sequence[KnownLayer],
) -> Executed | None:
    """What ran in an artifact's process on a CPU; None if its runtime cannot say.

    inputs: what it is called with; constant_shapes: of the artifact's constants; total_macs: of the network, for one
    sample.
    Raises StageError if it does not run.
    """
    if process.runtime.reports == "onednn":
        return summary(process.trace(inputs, weight_sizes(constant_shapes)), total_macs, layers)
    if process.runtime.reports == "itself":
        return reported(process.account(inputs), read(process.path).calls, total_macs, layers)
    return None


def reported(
    kernels: Iterable[ReportedKernel], calls: Sequence[KernelCall], total_macs: int | None, layers: Sequence[KnownLayer]
) -> Executed:
    """What ran, from a runtime's account: a call that no int8 kernel is known to compute counts as float.

    calls: of the file; a layer's is the first unused one with as many multiply-accumulates. A call of unknown size
    counts as float too if the network's total is known, else the share is not.
    """
    by_name: dict[str, list[ReportedKernel]] = {}
    for each in kernels:
        for name in each.nodes:
            by_name.setdefault(name, []).append(each)
    ran = [(call.macs, _kernel_of(call, by_name)) for call in calls]
    integer = sum(macs or 0 for macs, kernel in ran if kernel is not None and kernel.int8)
    total = max(total_macs or 0, sum(macs or 0 for macs, _ in ran))
    unknown = total_macs is None and any(macs is None for macs, _ in ran)
    found, left = [], list(ran)
    for layer in layers:
        own = next((one for one in left if one[0] == layer.macs), None)
        if own is not None:
            left.remove(own)
        kernel = own[1] if own is not None else None
        found.append(
            ExecutedLayer(
                layer.name, layer.macs, None if kernel is None else kernel.kernel, kernel is not None and kernel.int8
            )
        )
    return Executed(integer / total if total and not unknown else None, {}, found)


def _kernel_of(call: KernelCall, by_name: dict[str, list[ReportedKernel]]) -> ReportedKernel | None:
    """The kernel that computes a call: the first of its names that the account has; of several one in float."""
    for name in call.names:
        found = by_name.get(name)
        if found:
            return min(found, key=lambda kernel: kernel.int8)
    return None
