"""What a quantization-aware training starts from: the graph that PTQ ended with, or fake quantizers on FP32's weights.

Plain torch, never ray; torch is imported inside the functions.
"""

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from raq.stages.call import CALIBRATED, WEIGHTS, Call, Results
from raq.stages.inputs import example_input, read_dataset, read_trained_network
from raq.stages.trials import keep_one
from raq.store.files import digest, file_digest
from raq.store.settings import QatSettings

if TYPE_CHECKING:
    from torch import fx, nn

    from raq.model.loop import Hooks
    from raq.model.parity import Chain
    from raq.quantize.calibrated import Calibrated


@dataclass(frozen=True)
class _Key:
    """What the graph depends on, as a digest."""

    digest: str
    call: Call = field(compare=False)


def graph_to_train(call: Call) -> "fx.GraphModule":
    """The graph that is trained, as new; made once for the trials and steps of one process."""
    if not _starts_from_ptq(call):
        return copy.deepcopy(_with_fake_quantizers(_key(call)))
    from raq.quantize.learned_scales import let_learn, put_learned_scales

    calibrated = copy.deepcopy(_calibrated(_key(call)))
    put_learned_scales(calibrated.prepared)
    calibrated.correct()
    network = read_trained_network(call)
    frozen = {name for name, one in network.named_parameters() if not one.requires_grad}
    frozen |= {name for name, _ in network.named_buffers()}
    let_learn(calibrated.prepared, frozen, own=network.state_dict().keys())
    return calibrated.prepared


def hooks_of(call: Call, graph: "fx.GraphModule", teacher: "nn.Module | None") -> "Hooks":
    """What the training loop does for this graph."""
    from raq.quantize.distillation import distillation_of
    from raq.quantize.qat import qat_hooks
    from raq.quantize.steps import scale_hooks

    asked = call.read(QatSettings)
    loss = distillation_of(teacher, asked.qat, classes=asked.metric.needs_classes)
    if _starts_from_ptq(call):
        return scale_hooks(graph, asked.qat, loss)
    return qat_hooks(graph, asked.qat, loss)


def rest(call: Call, graph: "fx.GraphModule") -> None:
    """Put a trained graph into evaluation mode, its ranges fixed."""
    if _starts_from_ptq(call):
        return
    from torchao.quantization.pt2e import disable_observer

    from raq.quantize.qat import set_graph_mode

    set_graph_mode(graph, training=False, norms=False)
    graph.apply(disable_observer)


def to_convert(call: Call, trained: "fx.GraphModule") -> "fx.GraphModule":
    """The trained graph as conversion takes it."""
    if _starts_from_ptq(call):
        from raq.quantize.learned_scales import put_observers

        put_observers(trained)
    return trained


def step_prepared(call: Call, chain: "Chain") -> None:
    """The graph as it was before training, nothing rounded: it must be the FP32 network."""
    if _starts_from_ptq(call):
        from raq.quantize.learned_scales import in_float, put_learned_scales

        prepared = copy.deepcopy(_calibrated(_key(call))).prepared
        put_learned_scales(prepared)
        with in_float(prepared):
            chain.step("prepared", prepared)
        return
    from raq.quantize.qat import without_fake_quantizers

    untrained = graph_to_train(call)
    rest(call, untrained)
    with without_fake_quantizers(untrained):
        chain.step("prepared", untrained)


def how_it_starts(call: Call) -> Results:
    """For the record. start: ptq, calibration (of its own, where there is no PTQ of its backend), or fp32."""
    if not _starts_from_ptq(call):
        return {"start": "fp32"}
    found = _calibrated(_key(call))
    own = {"start": "ptq" if "ptq" in call.inputs else "calibration"}
    return {**own, "reduce_range": found.reduce_range}


def _starts_from_ptq(call: Call) -> bool:
    return call.read(QatSettings).qat.start == "ptq"


def _key(call: Call) -> _Key:
    asked, ptq = call.read(QatSettings), None
    if "ptq" in call.inputs:
        ptq = file_digest(call.input("ptq") / CALIBRATED)
    weights = file_digest(call.input("weights") / WEIGHTS)
    made_of = [weights, ptq, asked.qat.start, asked.qat.backend, asked.reduce_range, asked.model, asked.seed]
    return _Key(digest([*made_of, asked.data.digest, asked.calibration.model_dump(mode="json")]), call)


@keep_one
def _with_fake_quantizers(key: _Key) -> "fx.GraphModule":
    from raq.quantize.qat import prepare_qat

    call, asked = key.call, key.call.read(QatSettings)
    network, example = read_trained_network(call), example_input(call)
    return prepare_qat(network, example, asked.qat.backend, reduce_range=asked.reduce_range)


@keep_one
def _calibrated(key: _Key) -> "Calibrated":
    """What PTQ has left; where there is none of this backend, a calibration as the plan has it."""
    from raq.quantize.calibrated import Calibrated, load_calibrated, pin_ranges
    from raq.quantize.methods import Methods, Source, quantize

    call, asked = key.call, key.call.read(QatSettings)
    network, example = read_trained_network(call), example_input(call)
    if "ptq" in call.inputs:
        return load_calibrated(network, example, call.input("ptq") / CALIBRATED)
    source = Source(
        network, example, read_dataset(call), asked.qat.backend, asked.calibration, asked.seed, asked.reduce_range
    )
    made = quantize(source, Methods())
    pin_ranges(made.prepared)
    return Calibrated(made.prepared, source.reduce_range, source.per_channel)
