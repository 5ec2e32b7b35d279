"""How many multiply-accumulates a network does, by torch's own formulas, at the level of the operators that run.

torch.utils.flop_counter knows products of matrices, convolutions and most attention kernels; recurrent layers, the
CPU's attention kernel and the fused transformer layer are added here. An operator that is neither among those nor known
to do no products makes the total unknown: it may do any number of them. One multiply-accumulate is two of its flops.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from raq.errors import first_line
from raq.model.inputs import Example, as_example, copies
from raq.quantize.export import is_layer, switch_name

aten = torch.ops.aten


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    """query [B, H, L, E], key [B, H, S, E], value [B, H, S, V]: L x S x E for the scores, L x S x V for the sums."""
    return math.prod(query.shape[:-1]) * key.shape[-2] * (query.shape[-1] + value.shape[-1])


def _recurrent(inputs: Tensor, weight_ih: Tensor, weight_hh: Tensor, *_: Any, **__: Any) -> int:
    """inputs [T, B, I]: each step of each sequence goes once through both matrices of all gates."""
    steps: int = math.prod(inputs.shape[:2])
    macs: int = steps * (weight_ih.numel() + weight_hh.numel())
    return macs


def _transformer_layer(
    source: Tensor, embed_dim: int, heads: int, qkv: Tensor, qkv_bias: Any, out: Tensor, *others: Any, **_: Any
) -> int:
    """source [B, T, E]: the projections, the feed-forward layers, and attention's two products."""
    batch, tokens = source.shape[:2]
    matrices = [qkv, out, others[8], others[10]]  # between them: biases, settings, two norms
    macs: int = batch * tokens * sum(m.numel() for m in matrices) + 2 * batch * tokens * tokens * embed_dim
    return macs


def _native_attention(
    query: Tensor, key: Tensor, value: Tensor, embed_dim: int, heads: int, qkv: Tensor, bias: Any, out: Tensor,
    *others: Any, **more: Any,
) -> int:  # fmt: skip
    """query [B, L, E], key [B, S, E]."""
    batch, length = query.shape[:2]
    projected = (qkv.numel() // 3) * (length + key.shape[1] + value.shape[1]) + out.numel() * length
    return batch * (projected + 2 * length * key.shape[1] * embed_dim)


def _dot(first: Tensor, *_: Any, **__: Any) -> int:
    return first.numel()


def _addmv(_: Tensor, matrix: Tensor, *__: Any, **___: Any) -> int:
    return matrix.numel()


def _addr(_: Tensor, first: Tensor, second: Tensor, *__: Any, **___: Any) -> int:
    return first.numel() * second.numel()


def _by_int8_weights(data: Tensor, weight: Tensor, *_: Any, **__: Any) -> int:
    """data [n, K], weight [N, K]."""
    return data.shape[0] * weight.numel()


def _distances(first: Tensor, second: Tensor, *_: Any, **__: Any) -> int:
    """first [..., P, M], second [..., R, M]."""
    return math.prod(first.shape) * second.shape[-2]


Formula = Callable[..., int]
OWN_FORMULAS: dict[Any, Formula] = {
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_attention_math: _attention,
    aten._scaled_dot_product_attention_math_for_mps: _attention,
    aten.mkldnn_rnn_layer: _recurrent,
    aten._transformer_encoder_layer_fwd: _transformer_layer,
    aten._native_multi_head_attention: _native_attention,
    aten.dot: _dot,
    aten.vdot: _dot,
    aten.mv: _dot,
    aten.addmv: _addmv,
    aten.addr: _addr,
    aten._cdist_forward: _distances,
    aten._weight_int8pack_mm: _by_int8_weights,
}
# Operators that torch does not call pointwise and that do no products of the kind counted here: they move, choose,
# add up, normalise or make numbers. Pooling and interpolation add up few numbers an output, with fixed factors.
PLAIN_NAMES = """
    _adaptive_avg_pool1d _adaptive_avg_pool2d _adaptive_avg_pool3d _assert_async _assert_scalar
    _assert_tensor_metadata _conj _embedding_bag _embedding_bag_forward_only
    _fake_quantize_learnable_per_channel_affine _fake_quantize_learnable_per_tensor_affine
    _fake_quantize_per_tensor_affine_cachemask_tensor_qparams _fused_dropout _fused_moving_avg_obs_fq_helper
    _fused_moving_avg_obs_fq_helper_functional _fused_rms_norm _local_scalar_dense _log_softmax
    _native_batch_norm_legit _native_batch_norm_legit_functional _native_batch_norm_legit_no_training _neg_view
    _prelu_kernel _reshape_alias _safe_softmax _softmax _thnn_fused_gru_cell _thnn_fused_lstm_cell _to_copy _unique2
    _unsafe_index _unsafe_index_put _unsafe_masked_index _unsafe_view _upsample_bicubic2d_aa _upsample_bilinear2d_aa
    _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d _weight_norm_interface
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d
    adaptive_max_pool3d alias all amax amin aminmax any arange argmax argmin argsort as_strided avg_pool1d
    avg_pool2d avg_pool3d bernoulli bernoulli_ block_diag bucketize cat channel_shuffle choose_qparams clone col2im
    concat constant_pad_nd contiguous copy copy_ count_nonzero cudnn_batch_norm cummax cummin cumsum detach detach_
    diag_embed diagonal diagonal_copy dropout embedding embedding_bag empty empty_like empty_permuted empty_strided
    equal expand eye fake_quantize_per_channel_affine fake_quantize_per_channel_affine_cachemask
    fake_quantize_per_tensor_affine fake_quantize_per_tensor_affine_cachemask fill fill_ flatten flip fold
    fractional_max_pool2d full full_like fused_moving_avg_obs_fake_quant gather glu grid_sampler grid_sampler_2d
    grid_sampler_3d group_norm hardsigmoid hardswish hash_tensor histc im2col index index_add index_copy index_fill
    index_put index_put_ index_select instance_norm is_nonzero is_same_size item kthvalue layer_norm lift lift_fresh
    lift_fresh_copy linalg_vector_norm linspace log_softmax logsumexp masked_fill masked_fill_ masked_scatter
    masked_select max max_pool1d max_pool2d max_pool2d_with_indices max_pool3d max_pool3d_with_indices max_unpool2d
    mean median min miopen_batch_norm mkldnn_max_pool2d mode movedim multinomial narrow native_batch_norm
    native_channel_shuffle native_dropout native_group_norm native_layer_norm new_empty new_empty_strided new_full
    new_ones new_zeros nonzero norm normal one_hot ones ones_like pad permute pixel_shuffle pixel_unshuffle prod
    rand rand_like randint randn randn_like randperm reflection_pad1d reflection_pad2d reflection_pad3d repeat
    repeat_interleave replication_pad1d replication_pad2d replication_pad3d reshape resize_ rms_norm roll rot90
    scalar_tensor scatter scatter_ scatter_add scatter_reduce searchsorted select select_copy select_scatter set_
    slice slice_copy slice_scatter softmax sort split split_with_sizes split_with_sizes_copy squeeze squeeze_
    squeeze_copy stack std std_mean sum sym_numel sym_size sym_storage_offset sym_stride t t_ take take_along_dim
    tensor_split tile topk transpose transpose_ tril tril_indices triu triu_indices unbind unfold uniform
    unique_consecutive unsafe_chunk unsafe_split unsafe_split_with_sizes unsqueeze unsqueeze_ unsqueeze_copy
    upsample_bicubic2d upsample_bilinear2d upsample_linear1d upsample_nearest1d upsample_nearest2d
    upsample_nearest3d upsample_trilinear3d var var_mean view view_as_complex view_as_real view_copy zero_ zeros
    zeros_like
"""
WITHOUT_PRODUCTS = frozenset(PLAIN_NAMES.split())
OTHERS_WITHOUT_PRODUCTS = (
    "quantized_decomposed.quantize_", "quantized_decomposed.dequantize_", "quantized_decomposed.choose_qparams",
    "prim.device", "profiler._record_function_",
)  # fmt: skip
"""Beginnings of the names of others: quantize and dequantize, devices, marks of a profiler."""
PRODUCTS = (aten.mul, aten.addcmul)


@dataclass(frozen=True)
class NetworkMacs:
    """Multiply-accumulates of a network for one image; None if one of the operators `unknown` runs in it."""

    total: int | None
    unknown: list[str]


@dataclass(frozen=True)
class Operation:
    """A node of a graph that multiplies. macs: for one image; None if an operator of unknown arithmetic runs in it.

    layer: whether it is a convolution or a linear layer; else it is a product of activations, a recurrence, ...
    """

    name: str
    operator: str
    macs: int | None
    layer: bool


class MacCounter(TorchDispatchMode):
    """Counts what runs under it. macs: so far; unknown: operators whose arithmetic is not known."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.macs = 0
        self.unknown: dict[str, None] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        """Run an operator, in the operators that it is made of if it has no formula of its own."""
        kwargs = kwargs or {}
        packet = func.overloadpacket
        if packet not in OWN_FORMULAS and packet not in flop_registry:
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        result = func(*args, **kwargs)
        if packet in OWN_FORMULAS:
            self.macs += OWN_FORMULAS[packet](*args, **kwargs)
        elif packet in flop_registry:
            self.macs += int(flop_registry[packet](*args, **kwargs, out_val=result)) // 2
        elif packet in PRODUCTS:
            self.macs += _outer_product(args, result)
        elif not _does_no_products(func):
            self.unknown.setdefault(str(packet))
        return result


def _outer_product(args: Any, result: Any) -> int:
    """The products of a multiplication whose result is larger than all that it reads: a matrix product or convolution
    written out, of which a sum will follow. Scaling, gating and masking have results as large as what they scale."""
    read = [value.numel() for value in args if isinstance(value, Tensor)]
    written = result.numel() if isinstance(result, Tensor) else 0
    return written if len(read) > 1 and written > max(read) else 0


def _does_no_products(func: Any) -> bool:
    namespace, _, name = str(func.overloadpacket).rpartition(".")
    if namespace != "aten":
        return str(func.overloadpacket).startswith(OTHERS_WITHOUT_PRODUCTS)
    plain = name.removesuffix("_")  # in-place ones lack the tag of those that they are made of
    known = getattr(getattr(aten, plain, None), func._overloadname, func)
    return torch.Tag.pointwise in (*func.tags, *known.tags) or bool({name, plain} & WITHOUT_PRODUCTS)


def network_macs(network: nn.Module, example: Tensor | Example) -> NetworkMacs:
    """The multiply-accumulates of a network in evaluation mode.

    example: tensors [n, ...], of which the first two samples are run: with one, an outer product cannot be
    distinguished from scaling.
    """
    network.eval()
    counter, given = MacCounter(), as_example(example).first(2)
    try:
        with torch.no_grad(), counter:
            network(*copies(given.inputs))
    except (RuntimeError, NotImplementedError) as error:  # control flow, nested tensors: what cannot be looked into
        return NetworkMacs(None, [_unknown(error)])
    total = counter.macs // len(given)
    return NetworkMacs(None if counter.unknown else total, list(counter.unknown))


def operations(program: ExportedProgram) -> list[Operation]:
    """The nodes of a program that multiply, in order, each run once with two images of zeros (one, if it takes one)."""
    module = program.module()
    counter, found = MacCounter(), []

    class Runner(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            before, counter.unknown = counter.macs, {}
            result = super().run_node(n)
            if counter.macs > before or counter.unknown:
                operator = ", ".join(counter.unknown) or str(getattr(n.target, "overloadpacket", n.target))
                macs = None if counter.unknown else (counter.macs - before) // batch
                found.append(Operation(switch_name(n), operator, macs, is_layer(n)))
            return result

    inputs = [_zeros(node.meta["val"]) for node in module.graph.nodes if node.op == "placeholder"]
    batch = len(inputs[0])
    try:
        with torch.no_grad(), counter:
            Runner(module).run(*inputs)
    except (RuntimeError, NotImplementedError) as error:
        found.append(Operation("graph", _unknown(error), None, False))
    return found


def _unknown(error: Exception) -> str:
    first = first_line(error)
    return f"what cannot be counted ({type(error).__name__}: {first[:100]})"


def _zeros(example: Tensor) -> Tensor:
    """Zeros of an input's type, with two samples where any number is taken, other axes as they were exported."""
    shape = enumerate(example.shape)
    sizes = [size if isinstance(size, int) else 2 if at == 0 else int(size.node.hint) for at, size in shape]
    return torch.zeros(sizes, dtype=example.dtype)
