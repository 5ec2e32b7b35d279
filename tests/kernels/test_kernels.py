"""int8 kernels for GPUs, without one: bit for bit under Triton's interpreter, and what they are compiled to."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton")

from raq.kernels.reference import conv2d_sums, finish, linear_sums  # noqa: E402

COMPILED = {
    "C": 64, "K": 64, "GROUPS": 1, "KH": 3, "KW": 3, "SH": 1, "SW": 1, "PH": 1, "PW": 1, "DH": 1, "DW": 1,
    "ADDS": True, "RELU": True, "CLIPS": False, "ROUNDS": True, "BM": 128, "BN": 64, "BK": 64,
}  # fmt: skip


def test_kernels_compute_what_the_reference_does_bit_for_bit() -> None:
    """Odd shapes, strides, dilations and groups, every end of a kernel, two tiles."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    script = str(Path(__file__).with_name("interpreted.py"))
    command = [sys.executable, script]
    ran = subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert found["wrong"] == []
    assert found["values"] > 20_000
    assert found["distinct"] > 2_000, "not all the same few values"
    assert found["halves"] == [0.0, 2.0, 2.0, 0.0, -2.0], "as torch.round: 0.5, 1.5, 2.5, -0.5, -1.5"


def test_the_reference_is_exact() -> None:
    """Against sums in Python's integers, at the largest products there are."""
    data = torch.full((1, 300, 1, 1), 127, dtype=torch.int8)
    weight = torch.full((2, 1, 1, 300), -127, dtype=torch.int8)
    weight[1, 0, 0, 0] = 126
    sums = conv2d_sums(data, weight, [1, 1], [0, 0], [1, 1], 1)
    assert sums.dtype is torch.int32
    assert sums.flatten().tolist() == [-127 * 127 * 300, 127 * 126 - 127 * 127 * 299]
    assert linear_sums(data.flatten()[None], weight.reshape(2, 300)).tolist() == [sums.flatten().tolist()]
    rounded = finish(torch.tensor([[1, 3, 900]]), torch.ones(3), torch.zeros(3), None, 1.0, False, None, 0.5)
    assert rounded.tolist() == [[0, 2, 127]]


def compiled(kernel, constants: dict[str, object], architecture: int) -> str:
    """The PTX of a kernel for a GPU that need not be there."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kinds = {"data": "*i8", "weight": "*i8", "scale": "*fp32", "bias": "*fp32", "addend": "*i8", "out": "*i8",
             "addend_scale": "fp32", "ceiling": "fp32", "inverse_scale": "fp32"}  # fmt: skip
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else kinds.get(name, "i32") for name in names}
    aligned = {(n,): [["tt.divisibility", 16]] for n, name in enumerate(names) if kinds.get(name, "")[:1] == "*"}
    source = ASTSource(
        fn=kernel, signature=signature, attrs=aligned,
        constexprs={(names.index(name),): value for name, value in constants.items()},
    )  # fmt: skip
    options = {"enable_fp_fusion": False, "num_warps": 4, "num_stages": 3}
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options).asm["ptx"]


@pytest.mark.parametrize(
    ("architecture", "instruction"),
    [(80, r"mma\.sync\.aligned\.m16n8k32\.row\.col\.(satfinite\.)?s32\.s8\.s8\.s32"),
     (90, r"wgmma\.mma_async\.sync\.aligned\.m64n64k32\.s32\.s8\.s8")],
)  # fmt: skip
@pytest.mark.parametrize("layer", [{}, {"C": 3, "BK": 32}, {"C": 256, "K": 128, "KH": 1, "KW": 1}])
def test_layers_are_compiled_to_int8_tensor_cores(architecture: int, instruction: str, layer: dict[str, int]) -> None:
    """The instructions of Ampere and of Hopper; no product is fused with a sum, which would round otherwise."""
    from raq.kernels.triton_kernels import conv_kernel

    text = compiled(conv_kernel, {**COMPILED, **layer}, architecture)
    assert re.search(instruction, text)
    assert not re.search(r"\bfma\.rn\.f32", text)
    assert not re.search(r"(mma\.sync|wgmma\.mma_async)\S*\.(f16|bf16|tf32)", text)
