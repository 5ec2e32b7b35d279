"""Contenders of trust.py: a package as it is, and one that sleeps for a known share of each call's own time.

As a share of the call itself, so that the true ratio is exact whatever else the machine does.
"""

import os
import time
from pathlib import Path

import torch
from torch import nn

SHARE = 0.03
SPIN_S = 0.0002  # sleeping overshoots by about 60 microseconds: the rest is waited actively


class Package(nn.Module):
    """The package at TRUST_PACKAGE; `share` of each call's time is slept after it."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(1))  # a state dict is not empty
        self.share = share
        self.network = torch._inductor.aoti_load_package(str(Path(os.environ["TRUST_PACKAGE"])))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        started = time.perf_counter()
        logits: torch.Tensor = self.network(images)
        if self.share:
            until = started + (1 + self.share) * (time.perf_counter() - started)
            while (left := until - time.perf_counter()) > 0:
                if left > SPIN_S:
                    time.sleep(left - SPIN_S)
        return logits


def plain(num_classes: int) -> nn.Module:
    return Package(0.0)


def sleepy(num_classes: int) -> nn.Module:
    return Package(SHARE)
