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

LAYERS = {  # channels in and out of a group, kernel, stride, side, groups
    "3x3, 64": (64, 64, 3, 1, 56, 1), "3x3, 512": (512, 512, 3, 1, 7, 1), "1x1, 64 to 256": (64, 256, 1, 1, 56, 1),
    "first, 3 made 4": (4, 64, 7, 2, 224, 1), "linear": (512, 1000, 1, 1, 1, 1), "grouped": (4, 4, 3, 1, 14, 32),
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
    assert found["distinct"] > 40, "of int8, in every case"
    assert found["ends"][0] == -127, "as low as kernels round"
    assert found["ends"][-1] == 127
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


def constants_of(layer: tuple[int, ...], **ends: bool) -> tuple[dict[str, object], dict[str, int]]:
    """What a kernel is compiled with for a layer: its own constants, and Triton's options."""
    from raq.kernels.launch import tile_of

    channels, outputs, size, stride, side, groups = layer
    out, pad = (side + 2 * (size // 2) - size) // stride + 1, size // 2
    tile = tile_of(channels, outputs, out * out)
    return {
        "H": side, "W": side, "OH": out, "OW": out, "C": channels, "K": outputs, "GROUPS": groups, "KH": size,
        "KW": size, "SH": stride, "SW": stride, "PH": pad, "PW": pad, "DH": 1, "DW": 1, "ADDS": True, "RELU": True,
        "CLIPS": False, "ROUNDS": True, "BM": tile.pixels, "BN": tile.channels, "BK": tile.depth, **ends,
    }, tile.meta()  # fmt: skip


def compiled(
    kernel, constants: dict[str, object], options: dict[str, int], architecture: int, numbers: str = "fp64"
) -> str:
    """The PTX of a kernel for a GPU that need not be there. numbers: the type of Python's floats, fp64 in packages."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kinds = {"data": "*i8", "weight": "*i8", "scale": "*fp32", "bias": "*fp32", "addend": "*i8",
             "out": "*i8" if constants["ROUNDS"] else "*fp32", "addend_scale": numbers, "ceiling": numbers,
             "inverse_scale": numbers, "least": numbers}  # fmt: skip
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else kinds.get(name, "i32") for name in names}
    aligned = {(n,): [["tt.divisibility", 16]] for n, name in enumerate(names) if kinds.get(name, "")[:1] == "*"}
    source = ASTSource(
        fn=kernel, signature=signature, attrs=aligned,
        constexprs={(names.index(name),): value for name, value in constants.items() if name in names},
    )  # fmt: skip
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options).asm["ptx"]


def spilled_bytes(ptx: str, architecture: int, folder: Path) -> int:
    """Of registers, to memory, as NVIDIA's assembler says, which comes with Triton."""
    assembler = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    (folder / "kernel.ptx").write_text(ptx)
    name = f"sm_{architecture}{'a' if architecture == 90 else ''}"
    command = [str(assembler), "-v", f"-arch={name}", "kernel.ptx", "-o", "kernel.cubin"]
    said = subprocess.run(command, check=True, cwd=folder, capture_output=True, text=True, timeout=120).stderr
    return sum(int(found) for found in re.findall(r"(\d+) bytes spill", said))


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
    given = call.kwargs["kwargs"]
    assert set(given) | set(kernel_side_table.get_constant_args(call.kwargs["constant_args_idx"])) == names
    assert given["out"].meta["val"].is_contiguous(), "else Inductor fills it before, and the addend once more"
    assert given["addend"] is not given["out"]


@pytest.mark.parametrize(
    ("architecture", "instruction"),
    [(80, r"mma\.sync\.aligned\.m16n8k32\.row\.col\.(satfinite\.)?s32\.s8\.s8\.s32"),
     (90, r"wgmma\.mma_async\.sync\.aligned\.m64n\d+k32\.s32\.s8\.s8")],
)  # fmt: skip
@pytest.mark.parametrize("layer", LAYERS)
def test_layers_are_compiled_to_int8_tensor_cores(
    architecture: int, instruction: str, layer: str, tmp_path: Path
) -> None:
    """With the tiles that are shipped: the instructions of Ampere and of Hopper; no register is spilled; int8 is stored
    by words; no product is fused with a sum, though it may be; numbers that a package hands over in 64 bits are used
    in 32, else nothing would be rounded to integers."""
    from raq.kernels.triton_kernels import raq_int8_conv

    constants, options = constants_of(LAYERS[layer])
    text = compiled(raq_int8_conv, constants, options, architecture)
    assert re.search(instruction, text)
    assert not re.search(r"\bfma\.", text)
    assert re.findall(r"\b[a-z.]+\S*\.f64\b", text)
    assert set(re.findall(r"(\w+)\.\S*f64\b", text)) <= {"ld", "mov", "cvt"}, "handed over, and not computed with"
    assert not re.search(r"(mma\.sync|wgmma\.mma_async)\S*\.(f16|bf16|tf32)", text)
    assert spilled_bytes(text, architecture, tmp_path) == 0
    if LAYERS[layer][1] % 64 == 0:
        assert "st.global.b8" not in text
        assert "st.global.v" in text


def test_depthwise_layers_are_stored_by_words(tmp_path: Path) -> None:
    from raq.kernels.triton_kernels import raq_int8_depthwise

    constants, _ = constants_of((1, 96, 3, 1, 28, 96))
    own = {**constants, "C": 96, "BM": 64, "BN": 64}
    text = compiled(raq_int8_depthwise, own, {"num_warps": 4, "num_stages": 3}, 90)
    assert spilled_bytes(text, 90, tmp_path) == 0
    assert "st.global.b8" not in text
