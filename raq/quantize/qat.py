"""Quantization-aware training: the graph with fake quantizers, and what the training loop must do for it."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, fx, nn
from torchao.quantization.pt2e import (
    disable_fake_quant,
    disable_observer,
    enable_fake_quant,
    enable_observer,
)
from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e

from raq.errors import StageError, UserError, first_line
from raq.experiment.training import Qat
from raq.model.inputs import Example, as_example, copies
from raq.model.loop import Hooks, LossOf
from raq.model.parity import sqnr_db
from raq.quantize.export import graph_of, is_layer, layer_name
from raq.quantize.qat_batch_norm import (
    FIXED,
    TRAINING,
    batch_norm_constants,
    batch_norms,
    counts,
    restore_batch_norms,
)
from raq.quantize.qat_ranges import RangeSynchroniser
from raq.quantize.quantizers import QUANTIZERS, quantizer_errors, refuse_unannotated
from raq.quantize.stochastic_depth import insert_stochastic_depth, mark_stochastic_depth, take_out_marks

DROPOUT_TRAINING = 2  # position in aten.dropout's arguments
ATTENTION, ATTENTION_DROPOUT = torch.ops.aten.scaled_dot_product_attention, 4
RECURRENT = {torch.ops.aten.lstm: 6, torch.ops.aten.gru: 6, torch.ops.aten.rnn_tanh: 6, torch.ops.aten.rnn_relu: 6}
"""Recurrent operators, and the place of their argument `train`, which switches the dropout between their layers."""
DROPOUTS = tuple(
    getattr(torch.ops.aten, name + suffix)
    for name in ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")
    for suffix in ("", "_")
)
RANDOM = ("bernoulli", "rand", "normal", "rrelu", "multinomial", "native_dropout", "exponential", "uniform")
SWITCH = "raq_switch"
"""In a node's meta: the position of an argument that is zero in evaluation, and its value in training."""
MIN_PREPARED_DB = 60.0
"""Least SQNR of a prepared graph, its fake quantizers off, against the network: both compute in float32."""


def prepare_qat(network: nn.Module, example: Tensor | Example, backend: str, *, reduce_range: bool) -> fx.GraphModule:
    """The network's graph with fake quantizers where `backend` quantizes, in training mode.

    example: tensors [n, ...], n at least 2. Raises UserError if the graph draws random numbers other than in
    dropout and stochastic depth (exported, they could not be switched off), StageError, naming the layer, if the graph
    with its fake quantizers off does not compute what the network computes.
    """
    own, cumulative = _exportable(network)
    graph = graph_of(own.train(), example)
    marks = take_out_marks(graph)
    _refuse_randomness(graph)
    _mark_switches(graph)
    constants = batch_norm_constants(graph.graph, cumulative)
    with quantizer_errors(backend):
        prepared: fx.GraphModule = prepare_qat_pt2e(graph, QUANTIZERS[backend](qat=True, reduce_range=reduce_range))
    refuse_unannotated(prepared, backend)
    restore_batch_norms(prepared, constants)
    insert_stochastic_depth(prepared, marks)
    refuse_other_function(network, prepared, as_example(example).with_random_values())
    set_graph_mode(prepared, training=True, norms=True)
    prepared.apply(enable_observer)
    return prepared


def _exportable(network: nn.Module) -> tuple[nn.Module, frozenset[str]]:
    """A copy that can be exported in training mode, and the names of its batch norms whose momentum is None.

    Batch norms without gamma and beta are given constant ones, as torchao's rewrite wants them to be there.
    """
    own = mark_stochastic_depth(copy.deepcopy(network))
    cumulative = set()
    for name, module in own.named_modules():
        if not isinstance(module, nn.modules.batchnorm._BatchNorm):
            continue
        if module.momentum is None:
            module.momentum = 0.0
            cumulative.add(name)
        if module.weight is None:
            assert module.running_mean is not None
            module.weight = nn.Parameter(torch.ones_like(module.running_mean), requires_grad=False)
            module.bias = nn.Parameter(torch.zeros_like(module.running_mean), requires_grad=False)
    return own, frozenset(cumulative)


def _refuse_randomness(graph: fx.GraphModule) -> None:
    for node in graph.graph.nodes:
        packet = getattr(node.target, "overloadpacket", None)
        name = str(packet).rpartition(".")[2]
        if packet not in DROPOUTS and name.startswith(RANDOM):
            raise UserError(
                f"the model draws random numbers in training ({name}), and an exported "
                "graph cannot switch that off: its quantization-aware trained artifact would be random",
                "build the model without it, or leave QAT out with qat: null",
            )


def _mark_switches(graph: fx.GraphModule) -> None:
    """Note in each node of a graph exported in training mode what of it is another in evaluation: dropout.

    One that drops nothing in training either (`training=False` in the network's code) is not touched.
    """
    for node in graph.graph.nodes:
        packet = getattr(node.target, "overloadpacket", None)
        at = DROPOUT_TRAINING if packet in DROPOUTS else RECURRENT.get(packet)  # type: ignore[arg-type]
        if packet is ATTENTION:
            at = ATTENTION_DROPOUT
        if at is None or len(node.args) <= at:
            continue
        if node.args[at]:
            node.meta[SWITCH] = (at, node.args[at])
        else:
            node.meta[FIXED] = True


def refuse_other_function(network: nn.Module, prepared: fx.GraphModule, example: Tensor | Example) -> None:
    """StageError unless the prepared graph, fake quantizers off, computes what the network does in evaluation mode.

    example: tensors [n, ...], such as normalised images. The error names the first layer whose output differs.
    Leaves the graph in evaluation mode, fake quantizers on and observers off, and the network in evaluation mode.
    """
    distance = prepared_distance_db(network, prepared, example)
    if distance is not None and distance < MIN_PREPARED_DB:
        with without_fake_quantizers(prepared), torch.no_grad():
            layer = _first_difference(network, prepared, as_example(example).inputs)
        raise StageError(
            f"the graph prepared for QAT is another network before any quantization: {distance:.1f} dB SQNR of its "
            f"outputs, at least {MIN_PREPARED_DB:g} is required; the first layer that differs: {layer}",
            "torchao's rewrite of the graph is at fault; leave QAT out with qat: null, and report the layer",
        )


def prepared_distance_db(network: nn.Module, prepared: fx.GraphModule, example: Tensor | Example) -> float | None:
    """SQNR of the prepared graph's outputs, fake quantizers off, against the network's; None if they are equal.

    Both in evaluation mode, which they are left in, the graph's observers off.
    """
    network.eval()
    inputs = as_example(example).inputs
    set_graph_mode(prepared, training=False, norms=False)
    prepared.apply(disable_observer)
    with without_fake_quantizers(prepared), torch.no_grad():
        expected = network(*copies(inputs))
        try:
            found = prepared(*copies(inputs))
        except (RuntimeError, ValueError, TypeError) as error:
            first = first_line(error)
            raise StageError(
                f"the graph prepared for QAT does not run: {first}",
                "torchao's rewrite of the graph is at fault (grouped transposed convolutions, say); leave QAT out with "
                "qat: null",
            ) from error
    if not isinstance(found, Tensor) or not isinstance(expected, Tensor) or found.shape != expected.shape:
        raise UserError(
            "the model gives another kind of output in training than in evaluation, which QAT cannot take",
            "build it without auxiliary outputs (aux_logits=False), or leave QAT out with qat: null",
        )
    return sqnr_db(expected.numpy(), found.numpy())


@contextmanager
def without_fake_quantizers(prepared: fx.GraphModule) -> Iterator[None]:
    """With the graph's fake quantizers off."""
    prepared.apply(disable_fake_quant)
    try:
        yield
    finally:
        prepared.apply(enable_fake_quant)


def _first_difference(network: nn.Module, prepared: fx.GraphModule, inputs: tuple[Tensor, ...]) -> str:
    """The module whose output is the first to differ; "unknown" if none of those that can be compared does."""
    expected: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda m, i, o, name=name: expected.setdefault(name, o))
        for name, module in network.named_modules()
        if name and not any(True for _ in module.children())
    ]
    try:
        network(*copies(inputs))
    finally:
        for hook in hooks:
            hook.remove()
    found: dict[str, Tensor] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            result = super().run_node(n)
            name = layer_name(n)
            scaled = is_layer(n) and any(user.target is torch.ops.aten.div.Tensor for user in n.users)
            if isinstance(result, Tensor) and name in expected and n.op == "call_function" and not scaled:
                found[name] = result
            return result

    Recorder(prepared).run(*copies(inputs))
    for name, values in expected.items():
        given = found.get(name)
        if given is None or not isinstance(values, Tensor) or given.shape != values.shape:
            continue
        distance = sqnr_db(values.numpy(), given.numpy())
        if distance is not None and distance < MIN_PREPARED_DB:
            return f"{name} ({distance:.1f} dB)"
    return "unknown"


def qat_hooks(prepared: fx.GraphModule, settings: Qat, loss: LossOf | None = None) -> Hooks:
    """What the loop calls: mode switches, observer and batch-norm freeze, equal ranges on every rank, and this loss.

    Unset freeze points: observers after two thirds of the epochs, batch normalisation after half of them.
    """
    observers_until = (
        settings.epochs * 2 / 3 if settings.freeze_observers_after is None else settings.freeze_observers_after
    )
    norms_until = settings.epochs / 2 if settings.freeze_bn_after is None else settings.freeze_bn_after
    standing = {"observing": True, "norms": True}
    ranges = RangeSynchroniser(prepared)

    def set_mode(training: bool) -> None:
        set_graph_mode(prepared, training=training, norms=training and standing["norms"])
        prepared.apply(enable_observer if training and standing["observing"] else disable_observer)

    def before_step(epochs_done: float) -> None:
        if standing["observing"]:
            ranges.step()  # of the step before
        now = {"observing": epochs_done < observers_until, "norms": epochs_done < norms_until}
        if now != standing:
            standing.update(now)
            set_mode(True)

    return Hooks(set_mode, before_step, ranges.step, loss=loss)


def set_graph_mode(graph: fx.GraphModule, *, training: bool, norms: bool) -> None:
    """Switch dropout (`training`) and batch normalisation (`norms`: batch statistics, updating the running ones).

    Exported modules refuse `.train()`; the mode is an argument of these nodes. Without `norms` no batch is counted.
    """
    changed = False
    for node in batch_norms(graph.graph):
        wanted = norms and not node.meta.get(FIXED, False)
        changed |= bool(node.args[TRAINING] != wanted)
        node.update_arg(TRAINING, wanted)
    for node in counts(graph.graph):
        changed |= bool(node.args[1] != int(norms))
        node.update_arg(1, int(norms))
    for node in graph.graph.nodes:
        if SWITCH in node.meta:
            at, value = node.meta[SWITCH]
            wanted = value if training else type(value)(0)
            changed |= node.args[at] != wanted
            node.update_arg(at, wanted)
    for node in graph.graph.nodes:  # put in after the export, with stochastic depth
        if (
            getattr(node.target, "overloadpacket", None) in DROPOUTS
            and SWITCH not in node.meta
            and FIXED not in node.meta
        ):
            changed |= node.args[DROPOUT_TRAINING] != training
            node.update_arg(DROPOUT_TRAINING, training)
    if changed:
        graph.recompile()
