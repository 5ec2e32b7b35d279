"""What a candidate must reach (`require` in the experiment), checked against its records. Neither torch nor ray."""

from raq.errors import StageError
from raq.experiment import Require
from raq.plan import Stage
from raq.records import Record


def check_lowered(stage: Stage, results: Record, require: Require) -> None:
    """Raise StageError, naming the float layers, unless a lowered quantized candidate does enough MACs in int8.

    Where no int8 kernels exist (a GPU), there is nothing to require: the rows say that the arithmetic is float.
    """
    audit = results.get("audit")
    if audit is None:
        return
    share = audit["int8_mac_share"]
    if share is not None and share >= require.int8_mac_share:
        return
    floats = [layer for layer in sorted(audit["layers"], key=lambda layer: -layer["macs"]) if not layer["int8"]]
    named = ", ".join(f"{layer['name']} ({layer['reason']})" for layer in floats[:10]) or "none in the graph"
    problem = f"; {audit['problem']}" if audit["problem"] else ""
    raise StageError(
        f"{stage.name}: not quantized: {'an unknown share' if share is None else f'{share:.3f}'} of the MACs is int8, "
        f"required is {require.int8_mac_share:g}; float layers: {named}{problem}",
        "see the layers named; require.int8_mac_share sets the limit",
    )
