"""Distillation: the FP32 network's answers as what is trained on."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raq.experiment.training import Qat
from raq.model.loop import LossOf


def distillation_of(teacher: nn.Module | None, settings: Qat, *, classes: bool) -> LossOf | None:
    """The loss by sample for settings that distil; None without a teacher.

    teacher: the FP32 network, on the device of the training; classes: whether outputs are logits, over axis 1.
    """
    if teacher is None:
        return None
    share = settings.share_distilled
    return distilled(teacher.eval(), share, settings.temperature if classes else None)


def distilled(teacher: nn.Module, share: float, temperature: float | None) -> LossOf:
    """The loss by sample of which `share` is the divergence from the teacher's softened answers.

    Hinton et al. 2015, Distilling the Knowledge in a Neural Network; its factor of temperature squared keeps the size
    of the gradients. Without a temperature outputs are no logits, and it is their mean squared distance.
    """

    def loss(inputs: tuple[Tensor, ...], logits: Tensor, by_image: Tensor) -> Tensor:
        with torch.no_grad():
            answers = teacher(*inputs)
        if temperature is None:
            apart = F.mse_loss(logits, answers, reduction="none")
        else:
            own, wanted = (F.log_softmax(given / temperature, 1) for given in (logits, answers))
            apart = F.kl_div(own, wanted, reduction="none", log_target=True).sum(1) * temperature**2
        return (1 - share) * by_image + share * apart.reshape(len(logits), -1).mean(1)

    return loss
