"""What really ran, asked of whatever knows: oneDNN's reports for packages, else the runtime's own account; on a GPU
torch's profiler, by the names of raq's own kernels.

ONNX Runtime has its profile, OpenVINO the graph that it compiled, TensorRT its engine: each says by its file's nodes
which kernel computes them, and in what. A kernel computes several nodes where they are fused.
"""

from collections.abc import Iterable, Sequence

from raq.artifact.executed import Executed, ExecutedLayer, KnownLayer, summary
from raq.artifact.isolated import IsolatedProcess, LaunchedKernel, ReportedKernel
from raq.artifact.judgement import weight_sizes
from raq.artifact.runtimes import read
from raq.artifact.wrapper_code import KernelCall
from raq.experiment.inputs import Inputs

INT8_KERNELS = ("raq_int8_",)  # how names of kernels/triton_kernels.py begin, also in a package


def what_ran(
    process: IsolatedProcess,
    inputs: Inputs,
    constant_shapes: Iterable[Sequence[int]],
    total_macs: int | None,
    layers: Sequence[KnownLayer],
) -> Executed | None:
    """What ran in an artifact's process; None if its runtime cannot say, or nothing is known of a GPU's kernels.

    inputs: what it is called with; constant_shapes: of the artifact's constants; total_macs: of the network, for one
    sample.
    Raises StageError if it does not run.
    """
    if process.runtime.reports == "itself":
        return reported(process.account(inputs), read(process.path).calls, total_macs, layers)
    if process.device == "cuda":
        return launched(process.launches(inputs), total_macs, layers)
    if process.runtime.reports == "onednn":
        return summary(process.trace(inputs, weight_sizes(constant_shapes)), total_macs, layers)
    return None


def int8_launches(kernels: Iterable[LaunchedKernel]) -> int:
    """How many of these launches are of raq's int8 kernels."""
    return sum(kernel.count for kernel in kernels if kernel.name.startswith(INT8_KERNELS))


def launched(
    kernels: Sequence[LaunchedKernel], total_macs: int | None, layers: Sequence[KnownLayer]
) -> Executed | None:
    """What a GPU ran: each layer that is to be int8 is one launch of a kernel of raq's. None if no layer is to be int8;
    no share is known if no kernel was seen.

    Which launch was which layer's is not known: where some are missing, the largest layers count as those.
    """
    if not any(layer.int8 for layer in layers):
        return None
    if not kernels:
        return Executed(None)
    seen = int8_launches(kernels)
    meant = sorted((layer for layer in layers if layer.int8), key=lambda layer: layer.macs)
    ran = {id(layer) for layer in meant[:seen]}
    integer = sum(layer.macs for layer in layers if id(layer) in ran)
    found = [ExecutedLayer(x.name, x.macs, "raq's, int8" if id(x) in ran else None, id(x) in ran) for x in layers]
    return Executed(integer / total_macs if total_macs else None, {}, found)


def reported(
    kernels: Iterable[ReportedKernel], calls: Sequence[KernelCall], total_macs: int | None, layers: Sequence[KnownLayer]
) -> Executed:
    """What ran, from a runtime's account: a call that no int8 kernel is known to compute counts as float.

    calls: of the file; a layer's is the first unused one with as many multiply-accumulates. A call of unknown size
    counts as float too if the network's total is known, else the share is not; nor is it if a runtime cannot tell of a
    kernel.
    """
    blind = False
    by_name: dict[str, list[ReportedKernel]] = {}
    for each in kernels:
        blind |= each.int8 is None
        for name in each.nodes:
            by_name.setdefault(name, []).append(each)
    ran = [(call.macs, _kernel_of(call, by_name)) for call in calls]
    integer = sum(macs or 0 for macs, kernel in ran if kernel is not None and kernel.int8)
    total = max(total_macs or 0, sum(macs or 0 for macs, _ in ran))
    unknown = blind or (total_macs is None and any(macs is None for macs, _ in ran))
    found, left = [], list(ran)
    for layer in layers:
        own = next((one for one in left if one[0] == layer.macs), None)
        if own is not None:
            left.remove(own)
        kernel = own[1] if own is not None else None
        found.append(
            ExecutedLayer(
                layer.name,
                layer.macs,
                None if kernel is None else kernel.kernel,
                kernel is not None and bool(kernel.int8),
            )
        )
    return Executed(integer / total if total and not unknown else None, {}, found)


def _kernel_of(call: KernelCall, by_name: dict[str, list[ReportedKernel]]) -> ReportedKernel | None:
    """The kernel that computes a call: the first of its names that the account has; of several one in float."""
    for name in call.names:
        found = by_name.get(name)
        if found:
            return min(found, key=lambda kernel: bool(kernel.int8))
    return None
