"""What is added to a shortcut in ONNX Runtime: the range of it that counts, and where pairs are inserted."""

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from raq.artifact.addends import quantize_addends

SHORTCUT, TOTAL = (0.05, 10), (0.08, 40)  # scale and zero point


def model(relu: bool = True, users: int = 1, shortcut: tuple[float, int] = SHORTCUT, total: tuple[float, int] = TOTAL):
    """A quantized convolution whose output is added to a dequantized input; the sum is quantized."""
    constants = {
        "w": np.ones((2, 2, 1, 1), np.int8), "w_scale": np.float32(0.1), "w_zero": np.int8(0),
        "x_scale": np.float32(0.02), "x_zero": np.uint8(128), "s_scale": np.float32(shortcut[0]),
        "s_zero": np.uint8(shortcut[1]), "o_scale": np.float32(total[0]), "o_zero": np.uint8(total[1]),
    }  # fmt: skip
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "x_scale", "x_zero"], ["data"]),
        helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["weight"]),
        helper.make_node("DequantizeLinear", ["s", "s_scale", "s_zero"], ["shortcut"]),
        helper.make_node("Conv", ["data", "weight"], ["conv"], "conv"),
        helper.make_node("Add", ["conv", "shortcut"], ["sum"]),
        *([helper.make_node("Relu", ["sum"], ["positive"])] if relu else []),
        helper.make_node("QuantizeLinear", ["positive" if relu else "sum", "o_scale", "o_zero"], ["y"]),
        *[helper.make_node("Neg", ["conv"], [f"more{n}"]) for n in range(users - 1)],
    ]
    return helper.make_model(
        helper.make_graph(
            nodes, "g",
            [helper.make_tensor_value_info(name, TensorProto.UINT8, [1, 2, 4, 4]) for name in ("x", "s")],
            [helper.make_tensor_value_info("y", TensorProto.UINT8, [1, 2, 4, 4])],
            [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", 21)], ir_version=10,
    )  # fmt: skip


def pair(changed: onnx.ModelProto) -> tuple[float, int]:
    """The scale and zero point that were inserted."""
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in changed.graph.initializer}
    return float(tensors["raq_conv_scale"]), int(tensors["raq_conv_zero_point"])


@pytest.mark.parametrize("relu", [True, False])
def test_the_pair_is_between_the_convolution_and_the_sum(relu: bool) -> None:
    changed = model(relu)
    assert quantize_addends(changed) == 1
    onnx.checker.check_model(changed, full_check=True)
    kinds = [node.op_type for node in changed.graph.node]
    assert kinds[3:7] == ["Conv", "QuantizeLinear", "DequantizeLinear", "Add"]
    assert list(changed.graph.node[6].input) == ["raq_conv_dequantized", "shortcut"]
    assert quantize_addends(changed) == 0, "what is quantized is not quantized again"


@pytest.mark.parametrize(("relu", "low"), [(True, 0.0), (False, -40 * 0.08)])
def test_the_range(relu: bool, low: float) -> None:
    changed = model(relu)
    quantize_addends(changed)
    step, zero = pair(changed)
    least, most = low - 245 * 0.05, 215 * 0.08 + 10 * 0.05
    assert step == pytest.approx((most - least) / 255)
    assert zero == round(-least / step)


def test_where_nothing_is_inserted() -> None:
    several = model(users=2)
    unknown = model()
    unknown.graph.node[2].op_type = "Cast"
    floating = model()
    floating.graph.node[0].op_type = "Cast"
    twice = model()
    twice.graph.node[4].input[1] = "conv"
    output = model()
    output.graph.output.append(helper.make_tensor_value_info("conv", TensorProto.FLOAT, [1, 2, 4, 4]))
    for left in (several, unknown, floating, twice, output):
        before = left.SerializeToString()
        assert quantize_addends(left) == 0
        assert left.SerializeToString() == before


scales = st.tuples(st.floats(0.001, 1.0), st.integers(0, 255))


@given(scales, scales, st.booleans(), st.floats(-300, 300), st.integers(0, 255))
def test_beyond_the_range_nothing_changes(
    shortcut: tuple[float, int], total: tuple[float, int], relu: bool, value: float, stored: int
) -> None:
    """The quantized sum of a value cut off at the bounds is that of the value: for any that the shortcut can be."""
    changed = model(relu, shortcut=shortcut, total=total)
    quantize_addends(changed)
    step, zero = pair(changed)
    low, high = -zero * step, (255 - zero) * step
    added = (stored - shortcut[1]) * float(np.float32(shortcut[0]))

    def quantized(number: float) -> int:
        found = number + added
        found = max(0.0, found) if relu else found
        return int(np.clip(round(found / float(np.float32(total[0]))) + total[1], 0, 255))

    steps = step / float(np.float32(total[0]))  # the zero point is whole, so bounds are off by half a step at most
    assert abs(quantized(min(max(value, low), high)) - quantized(value)) <= round(steps / 2 + 0.5)
