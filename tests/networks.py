"""Small networks and a quantized program, for the tests here."""

from typing import Any

import torch
from torch import Tensor, nn

from raq.environment import has_vnni, machine
from raq.experiment.metric import Metric
from raq.experiment.ptq import Calibration
from raq.model.loop import Task
from raq.model.losses import loss_by_sample
from raq.model.metrics import Scorer
from raq.quantize import convert, ptq

EXAMPLE = torch.zeros(2, 3, 32, 32)
# without VNNI int8 kernels add pairs of 8-bit products in 16 bits, which is too little for the largest
SATURATES = not has_vnni(machine())


def small() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    ).eval()  # fmt: skip


def quantized(network: nn.Module, digits: Any, observer: Any = "histogram") -> Any:
    prepared = ptq.prepare(network, EXAMPLE, "x86", Calibration(observer=observer), reduce_range=False)
    ptq.calibrate(prepared, digits, Calibration(size=64), seed=0)
    return convert.convert(prepared, EXAMPLE)


# What classifiers are trained with and judged by; the loss smooths no labels.
TOP1 = Task(loss_by_sample("cross_entropy", 0.0, None), Scorer(Metric(), 10))


class Odd(nn.Module):
    """Five convolutions of odd widths with torch's own initialisation, one batch norm, a depthwise layer, a
    concatenation: what reaches the last layer is a hundredth of what went in."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 13, 3, padding=1), nn.BatchNorm2d(13)
        self.depthwise = nn.Conv2d(13, 13, 3, padding=1, groups=13)
        self.wide, self.joined = nn.Conv2d(13, 27, 3, 2, 1), nn.Conv2d(40, 37, 3, 2, 1)
        self.last, self.head = nn.Conv2d(37, 53, 3, 2, 1), nn.Linear(53, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.depthwise(torch.relu(self.norm(self.first(x)))))
        x = torch.cat([torch.relu(self.wide(x)), nn.functional.avg_pool2d(x, 2)], 1)
        found: Tensor = self.head(torch.relu(self.last(torch.relu(self.joined(x)))).mean((2, 3)))
        return found
