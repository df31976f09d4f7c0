"""What the scores look at a model with: examples, and how to run the model on them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Calibration:
    """Examples to look at a model with.

    The model should be in eval mode, where dropout does not blur what is seen.

    Args:
        batches: ``input_ids`` [B, S], ``attention_mask`` [B, S] where there is padding, ``labels``
            where the loss needs them; on the model's device.
        loss: mean loss over a batch's examples, a scalar.
        logits: what the model says: [B, C], or [B, S, V].
    """

    batches: Sequence[Batch]
    loss: Callable[[Batch], Tensor]
    logits: Callable[[Batch], Tensor]

    def tokens(self) -> float:
        """Mean number of tokens of an example, padding not counted."""
        masks = [token_mask(batch) for batch in self.batches]
        return sum(int(m.sum()) for m in masks) / sum(len(m) for m in masks)


def token_mask(batch: Batch) -> Tensor:
    """Which positions of a batch hold tokens and no padding: boolean [B, S]."""
    ids = batch["input_ids"]
    mask = batch.get("attention_mask")
    return torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
