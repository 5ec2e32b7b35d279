"""The terminal, for `raq profile`: a line a kernel, and what they come to. Neither torch nor ray."""

from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from raq.report.terminal import printable, say
from raq.store.results import ArtifactProfile

if TYPE_CHECKING:
    from raq.bench.profile import KernelTime, Profile

MIN_SHARE = 0.005  # of a call: kernels that take less are counted together


def print_profile(console: Console, found: "Profile") -> None:
    """The kernels in the order of execution, those that hardly count left out; then where the time of a call goes."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("layer", overflow="fold")
    table.add_column("kernel", no_wrap=True)
    for name in ("ms", "of a call", "GOPS", "of the peak"):
        table.add_column(name, justify="right", no_wrap=True)
    small = [kernel for kernel in found.kernels if kernel.ms < MIN_SHARE * found.call_ms]
    for kernel in found.kernels:
        if kernel in small:
            continue
        table.add_row(
            Text(printable(kernel.layer or "")), Text(printable(_name(kernel))), f"{kernel.ms:.3f}",
            _share(kernel.ms / found.call_ms), "" if kernel.gops is None else f"{kernel.gops:.0f}",
            _share(kernel.peak_share),
        )  # fmt: skip
    console.print(table)
    if small:
        say(console, f"and {len(small)} kernels of {sum(kernel.ms for kernel in small):.3f} ms together", "dim")
    parts = [
        ("in kernels that multiply", found.multiplying_ms), ("in reorders", found.reorder_ms),
        ("in oneDNN's other kernels", found.other_kernels_ms), ("outside of oneDNN", found.elsewhere_ms),
    ]  # fmt: skip
    said = ", ".join(f"{ms:.3f} ms ({_share(ms / found.call_ms)}) {where}" for where, ms in parts)
    say(
        console, f"a call of {found.batch_size} takes {found.call_ms:.3f} ms on {found.threads} threads: {said}", "bold"
    )
    if found.reorders:
        say(console, f"{found.reorders} reorders a call", "dim")
    int8, fp32 = found.peak.int8_gops, found.peak.fp32_gops
    peaks = [f"{gops:.0f} GOPS in {what}" for what, gops in (("int8", int8), ("FP32", fp32)) if gops is not None]
    most = found.peak_gops
    if found.gops is not None and peaks:
        of = "" if most is None else f", {_share(found.gops / most)} of the peak"
        say(console, f"{found.gops:.0f} GOPS over the whole call{of}; this CPU at most: {' and '.join(peaks)}", "dim")


def profile_in_words(found: ArtifactProfile) -> str:
    """Where the time of a call goes, and how near it comes to the CPU's peak."""
    total = found["total_ms"]
    of_peak = (
        ""
        if found["gops"] is None or not found["peak_gops"]
        else (f"; {found['gops']:.0f} GOPS, {_share(found['gops'] / found['peak_gops'])} of what this CPU can do")
    )
    return (
        f"{found['candidate']} at batch {found['batch_size']}: of {total:.2f} ms "
        f"{_share((total - found['other_ms']) / total)} in kernels that multiply, "
        f"{_share((found['reorder_ms'] + found['other_kernels_ms']) / total)} in oneDNN's others, "
        f"{_share(found['outside_onednn_ms'] / total)} outside of oneDNN{of_peak}"
    )


def _name(kernel: "KernelTime") -> str:
    """The implementation, which names the primitive but for that of a reorder."""
    return kernel.implementation if kernel.primitive != "reorder" else f"reorder {kernel.implementation}"


def _share(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f}%"
