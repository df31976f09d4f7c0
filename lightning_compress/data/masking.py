"""Targets of language models: the next token, or the masked ones.

Devlin, Chang, Lee, Toutanova, "BERT: Pre-training of Deep Bidirectional Transformers for Language
Understanding", 2018, arXiv:1810.04805, section 3.1 and appendix A.1: a share of the tokens is
chosen; of these, 80 % become the mask token, 10 % a random token and 10 % stay. As in RoBERTa
(arXiv:1907.11692, section 4.1) the choice is drawn anew in every epoch.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_compress.data.dataloader import BatchRequest
from lightning_compress.data.dataset import Targets
from lightning_compress.types import IGNORE_INDEX, Batch


class MaskedTokens(Targets):
    """Masks a batch's tokens, and asks for what was there.

    The choice depends on the seed, the example and, in training, the epoch alone: not on the
    batch, the process or the worker. At least one token of an example is chosen if any may be.

    Args:
        probability: of a token to be chosen, in (0, 1).
        mask_token_id: stands in the place of most chosen tokens.
        special_token_ids: never chosen and never put in.
        vocabulary: ids are below this number.
        seed: of the choice.
    """

    changes_input = True

    def __init__(
        self,
        *,
        probability: float,
        mask_token_id: int,
        special_token_ids: Sequence[int],
        vocabulary: int,
        seed: int,
    ) -> None:
        self.probability = probability
        self.mask_token_id = mask_token_id
        self.seed = seed
        self.special = np.zeros(vocabulary, dtype=bool)
        self.special[list(special_token_ids)] = True
        self.ordinary = np.flatnonzero(~self.special)

    def __call__(self, batch: Batch, request: BatchRequest) -> None:
        """Mask ``input_ids`` in place and add ``labels``, -100 where nothing was chosen."""
        ids, mask = batch["input_ids"].numpy(), batch["attention_mask"].numpy()
        maskable = (mask == 1) & ~self.special[ids]
        choice, fate, other = self._draws(batch["example_id"].tolist(), mask, request.epoch)
        chosen = maskable & (choice < self.probability)
        first = np.where(maskable, choice, 2.0).argmin(axis=1)
        rows = np.flatnonzero(maskable.any(axis=1))
        chosen[rows, first[rows]] = True
        batch["labels"] = torch.from_numpy(np.where(chosen, ids, IGNORE_INDEX))
        ids[chosen & (fate < 0.8)] = self.mask_token_id
        changed = chosen & (fate >= 0.8) & (fate < 0.9)
        ids[changed] = self.ordinary[(other[changed] * len(self.ordinary)).astype(np.int64)]

    def _draws(
        self, examples: list[int], mask: NDArray[np.int64], epoch: int | None
    ) -> NDArray[np.float64]:
        """Three random numbers for each token, [3, B, S]; those of padding mean nothing."""
        draws = np.ones((3, *mask.shape))
        for row, (example, length) in enumerate(zip(examples, mask.sum(axis=1), strict=True)):
            # Evaluation has an epoch of its own, and always the same.
            random = np.random.default_rng([self.seed, 0 if epoch is None else epoch + 1, example])
            draws[:, row, :length] = random.random((3, length))
        return draws


class NextTokens(Targets):
    """Targets of causal language modelling: the input itself, -100 at padding.

    Labels are aligned with the input; the loss shifts them, once.
    """

    def __call__(self, batch: Batch, request: BatchRequest) -> None:
        """Add ``labels`` [B, S]."""
        padding = batch["attention_mask"] == 0
        batch["labels"] = batch["input_ids"].masked_fill(padding, IGNORE_INDEX)
