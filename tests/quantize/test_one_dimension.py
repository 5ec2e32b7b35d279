"""Convolutions in one dimension are int8, by PTQ and QAT, with batch norm and ReLU, with either, with none."""

from pathlib import Path

import pytest
import torch
from networks import SATURATES
from torch import nn

from raq.artifact import inductor
from raq.artifact.account import what_ran
from raq.artifact.audit import audit_graph
from raq.artifact.isolated import IsolatedProcess
from raq.experiment.inputs import InputSpec
from raq.experiment.ptq import Calibration
from raq.model.inputs import Example
from raq.model.parity import sqnr_db
from raq.quantize import ptq
from raq.quantize.arithmetic import network_macs
from raq.quantize.convert import convert
from raq.quantize.qat import prepare_qat, set_graph_mode

SERIES = torch.randn(8, 3, 64, generator=torch.Generator().manual_seed(0))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv1d(3, 16, 9, 2, 4, bias=False), nn.BatchNorm1d(16), nn.ReLU(),
        nn.Conv1d(16, 16, 5, padding=2, bias=False), nn.BatchNorm1d(16),
        nn.Conv1d(16, 16, 3, padding=1), nn.ReLU(),
        nn.Conv1d(16, 16, 3, padding=1), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(16, 4),
    )  # fmt: skip


def program(kind: str):
    """The converted program, and what FP32 gives."""
    own = network()
    if kind == "ptq":
        prepared = ptq.prepare(own.eval(), SERIES[:2], "x86", Calibration(observer="minmax"), reduce_range=SATURATES)
        prepared(SERIES)
    else:
        prepared = prepare_qat(own, SERIES[:2], "x86", reduce_range=SATURATES)
        prepared(SERIES)
        own.train()(SERIES)  # the same batch for its batch norms
        set_graph_mode(prepared, training=False, norms=False)
    return convert(prepared, SERIES[:2]), own.eval()(SERIES).detach()


@pytest.mark.parametrize("kind", ["ptq", "qat"])
def test_all_layers_are_int8(kind: str, tmp_path: Path) -> None:
    """By the graph, and by the kernels that ran; what comes out is near what FP32 gives."""
    found, expected = program(kind)
    macs = network_macs(network(), Example((SERIES[:2],), ((),))).total
    layers = audit_graph(found)
    assert len(layers) == 5
    assert [layer.name for layer in layers if not layer.annotated] == []
    inductor.lower(found, tmp_path / "int8.pt2", {"candidate": kind})
    with IsolatedProcess(tmp_path / "int8.pt2") as process:
        outputs = process(SERIES)
        ran = what_ran(process, (InputSpec("input", (3, 64), "float32"),), [], macs, [])
    assert sqnr_db(expected.numpy(), outputs.numpy()) > 20
    assert ran is not None
    assert ran.executed_int8_mac_share == 1.0
