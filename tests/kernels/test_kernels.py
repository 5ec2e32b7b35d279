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

from raq.kernels.reference import Epilogue, Geometry, conv2d_sums, finish, linear_sums  # noqa: E402

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
    sums = conv2d_sums(data, weight, Geometry())
    assert sums.dtype is torch.int32
    assert sums.flatten().tolist() == [-127 * 127 * 300, 127 * 126 - 127 * 127 * 299]
    assert linear_sums(data.flatten()[None], weight.reshape(2, 300)).tolist() == [sums.flatten().tolist()]
    rounded = finish(torch.tensor([[1, 3, 900]]), Epilogue(torch.ones(3), torch.zeros(3), inverse_scale=0.5))
    assert rounded.tolist() == [[0, 2, 127]]


def compiled(kernel, constants: dict[str, object], architecture: int) -> str:
    """The PTX of a kernel for a GPU that need not be there."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kinds = {"data": "*i8", "weight": "*i8", "scale": "*fp32", "bias": "*fp32", "addend": "*i8", "out": "*i8",
             "addend_scale": "fp32", "ceiling": "fp32", "inverse_scale": "fp32", "least": "fp32"}  # fmt: skip
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else kinds.get(name, "i32") for name in names}
    aligned = {(n,): [["tt.divisibility", 16]] for n, name in enumerate(names) if kinds.get(name, "")[:1] == "*"}
    source = ASTSource(
        fn=kernel, signature=signature, attrs=aligned,
        constexprs={(names.index(name),): value for name, value in constants.items()},
    )  # fmt: skip
    options = {"num_warps": 4, "num_stages": 3}
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options).asm["ptx"]


@pytest.mark.parametrize("groups", [1, 8])
def test_compilers_of_torch_see_a_kernel_with_all_that_it_takes(groups: int) -> None:
    """On tensors of a GPU that are not real: what is no parameter of the kernel would be lost in a package."""
    from torch._higher_order_ops.triton_kernel_wrap import kernel_side_table
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    from raq.kernels.launch import convolve

    def layer(data: torch.Tensor, weight: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        after = Epilogue(ends, ends, data, 0.5, True, 6.0, 8.0)
        return convolve(data, weight, after, Geometry(padding=[1, 1], groups=groups))

    with FakeTensorMode():
        data = torch.empty(2, 8, 6, 6, dtype=torch.int8, device="cuda")
        weight = torch.empty(8, 3, 3, 8 // groups, dtype=torch.int8, device="cuda")
        graph = make_fx(layer)(data, weight, torch.empty(8, device="cuda"))
    (call,) = [node for node in graph.graph.nodes if "triton_kernel_wrapper" in str(node.target)]
    kernel = kernel_side_table.get_kernel(call.kwargs["kernel_idx"])
    names = set(getattr(kernel, "fn", kernel).arg_names)
    assert set(call.kwargs["kwargs"]) == names


@pytest.mark.parametrize(
    ("architecture", "instruction"),
    [(80, r"mma\.sync\.aligned\.m16n8k32\.row\.col\.(satfinite\.)?s32\.s8\.s8\.s32"),
     (90, r"wgmma\.mma_async\.sync\.aligned\.m64n64k32\.s32\.s8\.s8")],
)  # fmt: skip
@pytest.mark.parametrize("layer", [{}, {"C": 3, "BK": 32}, {"C": 256, "K": 128, "KH": 1, "KW": 1}])
def test_layers_are_compiled_to_int8_tensor_cores(architecture: int, instruction: str, layer: dict[str, int]) -> None:
    """The instructions of Ampere and of Hopper; no product is fused with a sum, though it may be."""
    from raq.kernels.triton_kernels import raq_int8_conv

    text = compiled(raq_int8_conv, {**COMPILED, **layer}, architecture)
    assert re.search(instruction, text)
    assert not re.search(r"\bfma\.", text)
    assert not re.search(r"(mma\.sync|wgmma\.mma_async)\S*\.(f16|bf16|tf32)", text)
