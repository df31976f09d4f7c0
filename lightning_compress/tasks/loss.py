"""Mean losses over the examples or tokens that have a label."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from lightning_compress.types import IGNORE_INDEX


def labelled_loss(
    loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, labels: Tensor, labelled: Tensor
) -> Tensor:
    """Compute the mean loss over the labelled examples of a batch, in float32.

    Args:
        loss: mean loss of logits [N, C] and labels [N, ...].
        logits: [B, C].
        labels: [B] or [B, C].
        labelled: boolean [B].

    Returns:
        A scalar; zero, with zero gradients, if no example is labelled.
    """
    logits = logits.float()
    if not labelled.all():
        logits, labels = logits[labelled], labels[labelled]
        if not len(labels):
            return logits.sum()  # the sum of nothing is zero, and gradients flow through it
    return loss(logits, labels)


def token_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Compute the mean cross entropy over the tokens with a target, in float32.

    Args:
        logits: [B, S, C].
        targets: [B, S] class indices, -100 where there is no target.

    Returns:
        A scalar; zero, with zero gradients, if there is no target.
    """
    total = functional.cross_entropy(
        logits.float().flatten(0, 1),
        targets.flatten(),
        ignore_index=IGNORE_INDEX,
        reduction="sum",
    )
    return total / torch.clamp((targets != IGNORE_INDEX).sum(), min=1)
