"""Quantization-aware training: the graph with fake quantizers, and what the training loop must do for it."""

import copy
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torchao.quantization.pt2e import FakeQuantizeBase, disable_observer, enable_observer
from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e

from raq.errors import UserError
from raq.model.training import Hooks
from raq.quantize.capture import export_network
from raq.quantize.quantizers import QUANTIZERS, refuse_unannotated
from raq.training_schema import Qat

BATCH_NORM_RUNNING_MEAN, BATCH_NORM_TRAINING = 3, 5  # positions in aten.batch_norm's arguments
DROPOUT_TRAINING = 2
DROPOUTS = tuple(
    getattr(torch.ops.aten, name + suffix)
    for name in ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")
    for suffix in ("", "_")
)
RANDOM = ("bernoulli", "rand", "normal", "rrelu", "multinomial", "native_dropout", "exponential", "uniform")


def prepare_qat(network: nn.Module, example: Tensor, backend: str, *, reduce_range: bool) -> fx.GraphModule:
    """The network's graph with fake quantizers where `backend` quantizes, in training mode.

    torchvision's stochastic depth is left out: it is a regulariser that an exported graph could not switch off again.
    Raises UserError if the graph draws random numbers other than in dropout: exported, they could not be switched off.
    """
    graph = export_network(_without_stochastic_depth(network).train(), example).module()
    _refuse_randomness(graph)
    prepared: fx.GraphModule = prepare_qat_pt2e(graph, QUANTIZERS[backend](qat=True, reduce_range=reduce_range))
    refuse_unannotated(prepared, backend)
    return prepared


def _without_stochastic_depth(network: nn.Module) -> nn.Module:
    """A copy of the network whose StochasticDepth modules drop nothing; the network itself if it has none."""
    if not any(type(module).__name__ == "StochasticDepth" for module in network.modules()):
        return network
    own = copy.deepcopy(network)
    for module in own.modules():
        if type(module).__name__ == "StochasticDepth":
            module.p = 0.0  # type: ignore[assignment]
    return own


def _refuse_randomness(graph: fx.GraphModule) -> None:
    for node in graph.graph.nodes:
        packet = getattr(node.target, "overloadpacket", None)
        name = str(packet).rpartition(".")[2]
        if packet not in DROPOUTS and name.startswith(RANDOM):
            raise UserError(
                f"the model draws random numbers in training ({name}, as stochastic depth does), and an exported "
                "graph cannot switch that off: its quantization-aware trained artifact would be random",
                "build the model without it (stochastic_depth_prob=0), or leave QAT out with qat: null",
            )


def qat_hooks(prepared: fx.GraphModule, settings: Qat, teacher: nn.Module | None = None) -> Hooks:
    """What the loop calls: mode switches, observer and batch-norm freeze, equal ranges on every rank, distillation.

    teacher: the FP32 network, on the device of the training, for settings that distil.

    Unset freeze points: observers after two thirds of the epochs, batch normalisation after half of them.
    """
    observers_until = (
        settings.epochs * 2 / 3 if settings.freeze_observers_after is None else settings.freeze_observers_after
    )
    norms_until = settings.epochs / 2 if settings.freeze_bn_after is None else settings.freeze_bn_after
    standing = {"observing": True, "norms": True}

    def set_mode(training: bool) -> None:
        set_graph_mode(prepared, training=training, norms=training and standing["norms"])
        prepared.apply(enable_observer if training and standing["observing"] else disable_observer)

    def before_step(epochs_done: float) -> None:
        now = {"observing": epochs_done < observers_until, "norms": epochs_done < norms_until}
        if now != standing:
            standing.update(now)
            set_mode(True)

    loss = None if teacher is None else _distilled(teacher.eval(), settings.distillation, settings.temperature)
    return Hooks(set_mode, before_step, lambda: synchronise_ranges(prepared), loss)


def _distilled(teacher: nn.Module, share: float, temperature: float) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The loss by image of which `share` is the divergence from the teacher's softened answers.

    Hinton et al. 2015, Distilling the Knowledge in a Neural Network; its factor of temperature squared keeps the size
    of the gradients.
    """

    def loss(images: Tensor, logits: Tensor, by_image: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = F.log_softmax(teacher(images) / temperature, 1)
        own = F.log_softmax(logits / temperature, 1)
        divergence = F.kl_div(own, wanted, reduction="none", log_target=True).sum(1) * temperature**2
        return (1 - share) * by_image + share * divergence

    return loss


def set_graph_mode(graph: fx.GraphModule, *, training: bool, norms: bool) -> None:
    """Switch dropout (`training`) and batch normalisation (`norms`: batch statistics, updating the running ones).

    Exported modules refuse `.train()`; the mode is an argument of these nodes.
    """
    changed = False
    for node in graph.graph.nodes:
        packet = getattr(node.target, "overloadpacket", None)
        if packet is torch.ops.aten.batch_norm:
            if node.args[BATCH_NORM_RUNNING_MEAN] is None:
                continue  # no running statistics: it normalises by the batch in either mode
            changed |= node.args[BATCH_NORM_TRAINING] != norms
            node.update_arg(BATCH_NORM_TRAINING, norms)
        elif packet in DROPOUTS:
            changed |= node.args[DROPOUT_TRAINING] != training
            node.update_arg(DROPOUT_TRAINING, training)
    if changed:
        graph.recompile()


def synchronise_ranges(prepared: fx.GraphModule) -> None:
    """Make every fake quantizer's range the smallest that covers all ranks' ranges, and its scale follow.

    Each rank has seen its own images only; converting rank 0's ranges would ignore what the others saw.
    """
    for module in prepared.modules():
        if isinstance(module, FakeQuantizeBase):
            observer = module.activation_post_process
            dist.all_reduce(observer.min_val, op=dist.ReduceOp.MIN)
            dist.all_reduce(observer.max_val, op=dist.ReduceOp.MAX)
            scale, zero_point = observer.calculate_qparams()
            module.scale.copy_(scale)
            module.zero_point.copy_(zero_point)
