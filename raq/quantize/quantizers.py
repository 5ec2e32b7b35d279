"""Quantizers by backend: what is annotated, with which observers.

x86: int8 kernels of oneDNN through Inductor. Importing torchao's quantizer is also what registers Inductor's int8
fusions; without it a converted graph compiles to float kernels in silence. arm: the same on Arm. xnnpack: the kernels
of XNNPACK through ExecuTorch, for phones; its quantizer comes with that package. cuda: raq's own, for GPUs.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn
from torchao.quantization.pt2e import (
    FakeQuantizeBase,
    FusedMovingAvgObsFakeQuantize,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    ObserverBase,
    PerChannelMinMaxObserver,
)
from torchao.quantization.pt2e.quantizer import QuantizationSpec, Quantizer
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY
from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
    QuantizationConfig,
    X86InductorQuantizer,
    _mark_nodes_as_annotated,
    _skip_annotate,
    _X86InductorQuantizationAnnotation,
    find_sequential_partitions,
    get_output_act_qspec,
)

from raq.errors import RaqError, StageError, first_line
from raq.experiment.ptq import Calibration
from raq.lazy import require_executorch
from raq.quantize.cuda_quantizer import CudaQuantizer
from raq.quantize.export import is_layer, layer_name, switch_name
from raq.quantize.observers import OBSERVERS

SMALLEST_SCALE = 2**-12


class X86Quantizer(X86InductorQuantizer):
    """torchao's, without two of its gaps (torchao 0.18).

    It ends in a bare assertion where a convolution or linear layer is added to a number. Reparameterised networks do
    that (timm's fastvit: a sum that begins with 0). Such an addition is no pattern of its. And it knows a convolution
    in one dimension only with a ReLU right after it, so that with batch norm between them, in QAT, it stays in float.
    """

    def _annotate_qat_conv2d_fusion_pattern(self, model: fx.GraphModule, config: Any, filter_fn: Any = None) -> None:
        """Convolutions with batch norm, in one dimension too."""
        super()._annotate_qat_conv2d_fusion_pattern(model, config, filter_fn)
        for pattern in ([nn.Conv1d, nn.BatchNorm1d, nn.ReLU], [nn.Conv1d, nn.BatchNorm1d]):
            for found in find_sequential_partitions(model, pattern):
                partitions = list(found)
                conv, *rest = self._get_output_nodes_of_partitions(partitions)
                is_conv = conv.target is torch.ops.aten.conv1d.default
                if config is None or not is_conv or _skip_annotate([conv, *rest], filter_fn):
                    continue
                self._annotate_conv_node_helper(conv, False, config)
                rest[-1].meta[Q_ANNOTATION_KEY] = _X86InductorQuantizationAnnotation(
                    output_qspec=get_output_act_qspec(config), _annotated=True, _is_output_of_quantized_pattern=True
                )
                _mark_nodes_as_annotated([node for partition in partitions for node in partition.nodes])

    def _annotate_conv2d(self, model: fx.GraphModule, config: Any, filter_fn: Any = None) -> None:
        """Convolutions alone, in one dimension too."""
        super()._annotate_conv2d(model, config, filter_fn)
        for node in model.graph.nodes:
            if node.target is torch.ops.aten.conv1d.default and not _skip_annotate([node], filter_fn):
                self._annotate_conv_node_helper(node, True, config)

    def _get_input_idx_for_binary_node(
        self, conv_gemm_node: fx.Node, binary_node: fx.Node
    ) -> tuple[int | None, int | None]:
        """Which argument of the addition the layer is, and which the other value; None if that is no tensor."""
        if not all(isinstance(each, fx.Node) for each in binary_node.args[:2]):
            return None, None
        found: tuple[int | None, int | None] = super()._get_input_idx_for_binary_node(conv_gemm_node, binary_node)
        return found


def x86_quantizer(
    *, qat: bool, calibration: Calibration | None = None, reduce_range: bool = False, per_channel: bool = True
) -> Quantizer:
    """The quantizer for Inductor on x86: activations uint8 per tensor, weights int8 per channel.

    calibration: which observer watches the activations, after training only (QAT has its own fake quantizers with
    moving averages). reduce_range: 7-bit activations, for CPUs without VNNI, whose int8 kernels add pairs of products
    in 16 bits and can saturate. per_channel: of the weights' scales.
    """
    activations = _activations(torch.uint8, (0, 127 if reduce_range else 255), None if qat else calibration, qat=qat)
    weights = _weights(qat=qat, per_channel=per_channel, lowest=-128)
    return X86Quantizer().set_global(QuantizationConfig(activations, activations, weights, None, qat))


def arm_quantizer(
    *, qat: bool, calibration: Calibration | None = None, reduce_range: bool = False, per_channel: bool = True
) -> Quantizer:
    """The quantizer for Inductor on Arm: activations int8 per tensor, and weights int8 per tensor too.

    Arguments as for x86, but that kernels of Arm add in 32 bits. Weights have one scale a tensor, as in torchao's own
    configuration for this quantizer.
    """
    from torchao.quantization.pt2e.quantizer.arm_inductor_quantizer import ArmInductorQuantizer

    assert not reduce_range
    activations = _activations(torch.int8, (-128, 127), None if qat else calibration, qat=qat)
    weights = _weights(qat=qat, per_channel=False, lowest=-128)
    return ArmInductorQuantizer().set_global(QuantizationConfig(activations, activations, weights, None, qat))


def xnnpack_quantizer(
    *, qat: bool, calibration: Calibration | None = None, reduce_range: bool = False, per_channel: bool = True
) -> Quantizer:
    """The quantizer for XNNPACK: activations int8 per tensor, weights int8 per channel, -127 to 127.

    Arguments as for x86; its kernels do not saturate. UserError if ExecuTorch, which has it, is not installed.
    """
    assert not reduce_range
    require_executorch()
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import XNNPACKQuantizer
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer_utils import QuantizationConfig as XnnpackConfig

    activations = _activations(torch.int8, (-128, 127), None if qat else calibration, qat=qat)
    weights = _weights(qat=qat, per_channel=per_channel, lowest=-127)
    quantizer: Quantizer = XNNPACKQuantizer().set_global(XnnpackConfig(activations, activations, weights, None, qat))
    return quantizer


def cuda_quantizer(
    *, qat: bool, calibration: Calibration | None = None, reduce_range: bool = False, per_channel: bool = True
) -> Quantizer:
    """The quantizer for raq's int8 kernels on GPUs: both int8, -127 to 127, activations per tensor with zero point 0.

    Arguments as for x86; tensor cores add in 32 bits.
    """
    assert not reduce_range
    calibration = None if qat else calibration
    activations = _activations(torch.int8, (-127, 127), calibration, qat=qat, scheme=torch.per_tensor_symmetric)
    return CudaQuantizer(activations, _weights(qat=qat, per_channel=per_channel, lowest=-127))


def _activations(
    dtype: torch.dtype,
    bounds: tuple[int, int],
    calibration: Calibration | None,
    *,
    qat: bool,
    scheme: torch.qscheme = torch.per_tensor_affine,
) -> QuantizationSpec:
    """Activations in one range a tensor, with the observer that `calibration` names, or QAT's fake quantizer."""
    constructor: Any = FusedMovingAvgObsFakeQuantize
    arguments: dict[str, Any] = {}
    if not qat:
        calibration = calibration or Calibration()
        constructor = OBSERVERS[calibration.observer]
        arguments = {"percentile": calibration.percentile} if calibration.observer == "percentile" else {}
    return QuantizationSpec(
        dtype=dtype,
        quant_min=bounds[0],
        quant_max=bounds[1],
        qscheme=scheme,
        is_dynamic=False,
        observer_or_fake_quant_ctr=constructor.with_args(eps=SMALLEST_SCALE, **arguments),
    )


def _weights(*, qat: bool, per_channel: bool, lowest: int) -> QuantizationSpec:
    """Symmetric int8 weights, with one scale a channel or one a tensor."""
    after_training: Any = PerChannelMinMaxObserver if per_channel else MinMaxObserver
    moving: Any = MovingAveragePerChannelMinMaxObserver if per_channel else MovingAverageMinMaxObserver
    constructor: Any = FusedMovingAvgObsFakeQuantize if qat else after_training
    arguments = {"observer": moving} if qat else {}
    return QuantizationSpec(
        dtype=torch.int8,
        quant_min=lowest,
        quant_max=127,
        qscheme=torch.per_channel_symmetric if per_channel else torch.per_tensor_symmetric,
        ch_axis=0 if per_channel else None,
        is_dynamic=False,
        observer_or_fake_quant_ctr=constructor.with_args(eps=SMALLEST_SCALE, **arguments),
    )


class SkipLayersQuantizer(Quantizer):
    """A quantizer that leaves the layers and operators of these names (`export.switch_name`) in float."""

    def __init__(self, quantizer: Quantizer, names: Collection[str]) -> None:
        super().__init__()
        self.quantizer, self.names = quantizer, frozenset(names)

    def transform_for_annotation(self, model: fx.GraphModule) -> fx.GraphModule:
        """As the quantizer does."""
        transformed: fx.GraphModule = self.quantizer.transform_for_annotation(model)
        return transformed

    def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
        """As the quantizer does, and the marks are taken off those: they read their inputs as they are."""
        annotated: fx.GraphModule = self.quantizer.annotate(model)
        for node in annotated.graph.nodes:
            if switch_name(node) in self.names:
                node.meta.pop(Q_ANNOTATION_KEY, None)
        return annotated

    def validate(self, model: fx.GraphModule) -> None:
        """As the quantizer does."""
        self.quantizer.validate(model)


QUANTIZERS = {"x86": x86_quantizer, "arm": arm_quantizer, "xnnpack": xnnpack_quantizer, "cuda": cuda_quantizer}


def refuse_unannotated(prepared: fx.GraphModule, backend: str) -> None:
    """StageError if a prepared graph has layers and no observer: the quantizer took none of them, and said nothing."""
    found = [node for node in prepared.graph.nodes if is_layer(node)]
    if found and not any(isinstance(m, (ObserverBase, FakeQuantizeBase)) for m in prepared.modules()):
        named = ", ".join(layer_name(node) for node in found[:5])
        raise StageError(
            f"the {backend} quantizer has annotated none of the model's {len(found)} layers ({named}, ...)",
            "the model would stay in float: torch and torchao must be a pair that belongs together; see 'raq doctor'",
        )


@contextmanager
def quantizer_errors(backend: str) -> Iterator[None]:
    """Whatever torchao raises while it annotates or prepares, maybe a bare assertion, as StageError with the layer."""
    try:
        yield
    except RaqError:
        raise
    except Exception as error:  # torchao raises many kinds, some without a word
        where = _node_in(error)
        kind, text = type(error).__name__, first_line(error)
        said = kind if kind == text else f"{kind}: {text}"
        layer = "" if where is None else f" at {switch_name(where)} ({where.target})"
        raise StageError(
            f"the quantizer of {backend} fails{layer}: {said}",
            "torchao has no pattern for what is there; leave the layer in float, or change how the model joins it "
            "(sweep.layers leaves layers in float); --debug shows all of it",
        ) from error


def _node_in(error: BaseException) -> fx.Node | None:
    """The node that the innermost function of an error was about, as its variables show it."""
    found, trace = None, error.__traceback__
    while trace is not None:
        nodes = [value for value in trace.tb_frame.f_locals.values() if isinstance(value, fx.Node)]
        found = next((node for node in nodes if is_layer(node)), nodes[0] if nodes else found)
        trace = trace.tb_next
    return found
