"""What the optimizer sees: AdamW without decay on biases and norms, and a warmed-up schedule."""

import math
from typing import Literal

import torch
from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lightning_compress.errors import InputError

Schedule = Literal["linear", "cosine"]


def adamw(model: nn.Module, learning_rate: float, weight_decay: float) -> AdamW:
    """AdamW over the trainable parameters; vectors (biases, norms) are not decayed.

    Source: Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019,
    https://arxiv.org/abs/1711.05101.
    """
    trainable = [weight for weight in model.parameters() if weight.requires_grad]
    groups = [
        {"params": [w for w in trainable if w.ndim >= 2], "weight_decay": weight_decay},
        {"params": [w for w in trainable if w.ndim < 2], "weight_decay": 0.0},
    ]
    # On the CPU the fused kernel is several times faster. On CUDA Lightning refuses to clip
    # gradients under fp16 with it, and the default kernel is as good.
    fused = all(weight.device == torch.device("cpu") for weight in trainable)
    return AdamW(groups, lr=learning_rate, fused=fused or None)


def warmed_up(
    optimizer: Optimizer, schedule: Schedule, warmup: float, total_steps: int | float
) -> LambdaLR:
    """Rise linearly over the first share ``warmup`` of the steps, then fall to zero at the end.

    Args:
        optimizer: whose learning rate is the peak.
        schedule: how it falls.
        warmup: share of the steps, in [0, 1].
        total_steps: optimizer steps of the whole run.

    Raises:
        InputError: ``warmup`` is outside [0, 1], or the run has no end.
    """
    if not 0 <= warmup <= 1:
        raise InputError(f"model.warmup is a share of the run in [0, 1], not {warmup}")
    if math.isinf(total_steps):
        raise InputError(
            "the learning rate falls to zero at the end of the run, and this run has none: set "
            "trainer.max_epochs or trainer.max_steps"
        )
    rise = round(warmup * total_steps)

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / (rise + 1)
        left = max(0.0, (total_steps - step) / max(1, total_steps - rise))
        return left if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * (1 - left)))

    return LambdaLR(optimizer, factor)
