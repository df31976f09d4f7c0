"""How far a model's predictions have moved."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from lightning_compress.models.calibration import Batch, Calibration, token_mask


@torch.no_grad()
def divergence_from(whole: Sequence[Tensor], calibration: Calibration) -> float:
    """The Kullback-Leibler divergence from what the model said before to what it says now.

    Args:
        whole: what it said of each batch: [B, C], or [B, S, V].
        calibration: the examples; their labels are not used.

    Returns:
        Nats, in the mean of the examples, of a language model of their tokens; the mean squared
        difference where the model predicts a single number.
    """
    total = sum(
        _divergence(before, calibration.logits(batch), batch)
        for before, batch in zip(whole, calibration.batches, strict=True)
    )
    return total / sum(len(batch["input_ids"]) for batch in calibration.batches)


def _divergence(whole: Tensor, less: Tensor, batch: Batch) -> float:
    """Summed over the examples; of a language model over the mean of each example's tokens."""
    whole, less = whole.double(), less.double()
    if whole.shape[-1] == 1:
        return float((whole - less).square().sum())
    nats = functional.kl_div(
        less.log_softmax(-1), whole.log_softmax(-1), reduction="none", log_target=True
    ).sum(-1)
    if nats.dim() == 1:
        return float(nats.sum())
    mask = token_mask(batch)
    return float(((nats * mask).sum(1) / mask.sum(1).clamp(min=1)).sum())
