"""What ran, by oneDNN's own report: int8 kernels, float ones, and weights that are packed anew at every call."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from networks import quantized, small

from raq.artifact import check, executed, inductor
from raq.artifact.account import launched
from raq.artifact.audit import audit
from raq.artifact.executed import KnownLayer
from raq.artifact.generated_code import read_package
from raq.artifact.isolated import IsolatedProcess, LaunchedKernel
from raq.errors import StageError
from raq.experiment.execution import Resources
from raq.experiment.inputs import image_input
from raq.experiment.measurement import Require
from raq.plan.requirements import check_results
from raq.plan.stages import Stage

MACS = [32 * 32 * 16 * 27, 16 * 16 * 32 * 144, 320]
NOWHERE, MARK = Path("no-results"), "raq-call "


@pytest.fixture(scope="module")
def program(digits):
    torch.manual_seed(0)
    return quantized(small(), digits)


def evaluation(candidate: str) -> Stage:
    return Stage(
        f"evaluate/{candidate}",
        "evaluate",
        "quantize",
        {"candidate": candidate, "kind": candidate},
        {},
        "f",
        Resources(),
    )


def lowered(program, path: Path, **configuration) -> Path:
    with torch.no_grad():
        torch._inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=configuration)
    return path


def ran(path: Path, layers=()):
    with IsolatedProcess(path) as process:
        traces = process.trace((image_input((3, 32, 32)),), {432, 4608, 320})
    return executed.summary(traces, sum(MACS), layers)


def test_every_layer_ran_in_int8(program, tmp_path: Path) -> None:
    path = tmp_path / "a.pt2"
    inductor.lower(program, path, {"candidate": "ptq", "input": [3, 32, 32], "macs": sum(MACS)})
    layers = [KnownLayer(layer.name, layer.macs) for layer in audit(program, read_package(path)).layers]
    found = ran(path, layers)
    assert found.executed_int8_mac_share == 1.0
    assert [(row.macs, row.int8) for row in found.executed_layers] == [(macs, True) for macs in MACS]
    assert all("x s8" in row.kernel for row in found.executed_layers)
    assert found.reorders_per_call.keys() == {"1", "8"}
    checked = check.check(path, NOWHERE, run=True, require=0.95)
    assert checked["problems"] == []
    assert checked["executed_int8_mac_share"] == 1.0


def test_an_unfrozen_program_ran_none_in_int8(program, tmp_path: Path) -> None:
    found = ran(lowered(program, tmp_path / "a.pt2", freezing=False))
    assert found.executed_int8_mac_share == 0.0
    results = {**found.as_record(), "float_by_choice_share": 0.0}
    with pytest.raises(StageError, match=r"0\.000 of its MACs ran in int8 kernels, required is 0\.95"):
        check_results(evaluation("ptq"), results, Require())
    check_results(evaluation("fp32"), results, Require())


def told(primitive: str, source: str, weights: str, problem: str, event: str = "exec") -> str:
    """A line as oneDNN 3.12 writes it."""
    layout = "blocked:acdb::f0"
    tensors = f"src:{source}::{layout} wei:{weights}:a:{layout} bia:f32:a:{layout} dst:u8::{layout}"
    start = f"onednn_verbose,v1,primitive,{event},cpu,{primitive},brg:avx512_core_vnni,forward_inference"
    return f"{start},{tensors},attr-scratchpad:user,alg:direct,{problem},0.019"


@pytest.mark.parametrize(
    ("line", "macs", "integer"),
    [
        (told("convolution", "u8", "s8", "mb2_ic3oc16_ih32oh32kh3sh1dh0ph1_iw32ow32kw3"), 2 * 16 * 1024 * 27, True),
        (told("convolution", "f32", "f32", "mb1_g4ic8oc16_ih9oh9kh3sh1dh0_iw9ow9kw3"), 16 * 81 * 2 * 9, False),
        (told("matmul", "u8", "s8", "1x64:64x10"), 640, True),
        (told("matmul", "f32", "f32", "8x5x7:8x7x9"), 8 * 5 * 7 * 9, False),
        (told("inner_product", "f32", "f32", "mb4ic512oc1000"), 4 * 512 * 1000, False),
        (told("matmul", "u8", "s8", "1x64:64x10", event="create:cache_miss"), None, None),
        ("anything else", None, None),
    ],
)
def test_lines_of_the_trace(line: str, macs: int | None, integer: bool | None) -> None:
    found = executed.read_execution(line)
    assert (macs, integer) == (None, None) if found is None else (found.macs, found.integer) == (macs, integer)


def test_what_ran_in_16_bits_is_half_and_not_int8() -> None:
    """Three quarters of it in bfloat16: refused of a candidate of half, and nothing to ask of others."""
    text = "\n".join(
        ["raq-call 1", told("matmul", "bf16", "bf16", "1x64:64x30"), told("matmul", "f32", "f32", "1x64:64x10")]
    )
    found = executed.summary(executed.read_trace(text, MARK, set()), 64 * 40)
    assert (found.executed_half_mac_share, found.executed_int8_mac_share) == (0.75, 0.0)
    results = found.as_record()
    with pytest.raises(StageError, match=r"not in half precision: 0\.750 of its MACs .* required is 0\.9"):
        check_results(evaluation("half"), results, Require())
    check_results(evaluation("half"), results, Require(half_mac_share=0.7))
    with pytest.raises(StageError, match="an unknown share of its MACs ran in kernels of 16 bits"):
        check_results(evaluation("half"), {**results, "executed_half_mac_share": None}, Require())
    check_results(evaluation("fp32"), results, Require())
    with pytest.raises(StageError, match="not quantized"):
        check_results(evaluation("ptq"), results, Require())
    others = evaluation("ptq")
    check_results(replace(others, settings={**others.settings, "quantizer": "nncf"}), results, Require())


def test_what_is_not_known_to_have_run_in_int8_is_refused() -> None:
    """Of a runtime that says what it runs; where nothing can say it, the code or the file has been judged."""
    with pytest.raises(StageError, match="it is not known how much of it ran in int8 kernels"):
        check_results(evaluation("ptq"), executed.Executed(None).as_record(), Require())
    check_results(evaluation("ptq"), {}, Require())
    check_results(evaluation("fp32"), executed.Executed(None).as_record(), Require())


def test_only_weights_packed_anew_in_the_last_call_count() -> None:
    """A weight's shape is the same at both batch sizes, be its first side one of them; activations' differ.

    oneDNN may pack for one batch size alone: the six 1x1 convolutions of ResNet-50 in FP32, at 8 and not at 1.
    """
    weight, other = told("reorder", "s8", "s8", "16x3x3x3"), told("reorder", "s8", "s8", "8x16x3x3")
    images = told("reorder", "u8", "u8", "8x4x6x6")  # as many numbers as a weight has, too
    activations = [told("reorder", "u8", "u8", f"{n * 144}x8") for n in (1, 8)]  # as many numbers as a weight has
    text = "\n".join(
        [
            *("raq-call 1", weight, weight, "raq-call 1", weight, other, activations[0]),
            *("raq-call 8", other, activations[1], images),
        ]
    )
    found = executed.summary(executed.read_trace(text, MARK, {432, 1152}), None)
    assert found.reorders_per_call == {"1": 2, "8": 1}, "the first weight is packed at one batch size alone"
    assert found.executed_int8_mac_share is None, "no total, no share"


def test_marks_that_an_artifact_writes_itself_are_none() -> None:
    line = told("convolution", "u8", "s8", "mb1_ic3oc16_ih32oh32kh3_iw32ow32kw3")
    text = f"raq-call x\nraq-call 0\nraq-call {'9' * 5000}\nother-call 1\n{line}\nraq-call 1\n"
    (traced,) = executed.read_trace(text, MARK, set()) or []
    assert traced.int8_macs == 0


def test_a_kernel_of_unknown_size_makes_the_share_unknown() -> None:
    text = "\n".join(["raq-call 1", told("matmul", "u8", "s8", "1x64:64x10"), told("rnn", "f32", "f32", "l1t16mb1")])
    assert executed.summary(executed.read_trace(text, MARK, set()), 640).executed_int8_mac_share is None


def test_where_onednn_cannot_report_nothing_is_known() -> None:
    assert executed.read_trace("onednn_verbose,v1,info\n", MARK, set()) is None
    nothing = executed.read_trace("raq-call 1\n", MARK, set())
    assert nothing is not None and executed.summary(nothing, 10).executed_int8_mac_share == 0.0, "it could report"
    assert executed.summary(None, 10).executed_int8_mac_share == 0.0


def test_more_than_it_should_do_is_no_share_above_one() -> None:
    text = f"raq-call 1\n{told('convolution', 'u8', 's8', 'mb1_ic3oc16_ih32oh32kh3_iw32ow32kw3')}\n"
    assert executed.summary(executed.read_trace(text, MARK, set()), 1000).executed_int8_mac_share == 1.0


def test_on_a_gpu_launches_of_our_kernels_are_the_int8_layers() -> None:
    layers = [KnownLayer("first", 100, int8=True), KnownLayer("second", 300, int8=True), KnownLayer("last", 10, False)]
    ours = [LaunchedKernel(name=f"raq_int8_conv_{n}", count=1, ms=0.1) for n in range(2)]
    other = LaunchedKernel(name="triton_poi_fused_relu_0", count=3, ms=0.1)

    def share(*kernels: LaunchedKernel) -> float | None:
        found = launched(kernels, 410, layers)
        return found and found.executed_int8_mac_share

    assert share(*ours, other) == 400 / 410
    assert share(ours[0], other) == 100 / 410, "the largest counts as the one that did not run"
    assert share(other) == 0
    assert launched([], 410, layers) == executed.Executed(None), "the profiler saw nothing, so no share is known"
    assert launched(ours, 410, [KnownLayer("first", 100, int8=False)]) is None
