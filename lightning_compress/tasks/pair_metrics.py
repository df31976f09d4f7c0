"""Metrics of the embeddings of pairs of texts, which may come in any order and any batches."""

import torch
from torch import Tensor
from torch.nn import functional
from torchmetrics import Metric
from torchmetrics.functional.regression import pearson_corrcoef, spearman_corrcoef
from torchmetrics.utilities import dim_zero_cat

_ROWS = 1024  # first texts whose cosines with all second texts are computed at a time


class PairMetric(Metric):
    """Keeps the embeddings of all texts; a text that comes twice counts once."""

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    texts: list[Tensor]  # each [n, 2 + H]: the labels and the embedding of a text

    def __init__(self) -> None:
        super().__init__()
        self.add_state("texts", [], dist_reduce_fx="cat")

    def update(self, embeddings: Tensor, labels: Tensor) -> None:
        """Add texts: embeddings [B, H], labels [B, 2] of number and score."""
        known = ~labels[:, 0].isnan()
        self.texts.append(torch.cat([labels, embeddings.float()], 1)[known])

    def _pairs(self) -> tuple[Tensor, Tensor, Tensor]:
        """The normalised embeddings of first and second texts [P, H], and the scores [P]."""
        rows = dim_zero_cat(self.texts)
        rows = rows[rows[:, 0].argsort(stable=True)]
        numbers = rows[:, 0].long()
        rows = rows[torch.diff(numbers, prepend=numbers.new_tensor([-1])) != 0]
        numbers = rows[:, 0].long()
        firsts = torch.nonzero((numbers[:-1] % 2 == 0) & (torch.diff(numbers) == 1)).squeeze(1)
        units = functional.normalize(rows[:, 2:], dim=-1)
        return units[firsts], units[firsts + 1], rows[firsts, 1]

    def _cosines(self) -> tuple[Tensor, Tensor]:
        """Cosine and score of each pair, [P] each."""
        first, second, scores = self._pairs()
        return (first * second).sum(-1), scores

    def _ranks(self) -> Tensor:
        """Place of each first text's partner among all second texts, [P], the best is 1.

        Texts with equal embeddings share the mean of their places.
        """
        first, second, _ = self._pairs()
        found = []
        for start in range(0, len(first), _ROWS):
            some = first[start : start + _ROWS]
            cosines = some @ second.T
            own = cosines.diagonal(start)[:, None]
            before, equal = (cosines > own).sum(1), (cosines == own).sum(1)
            found.append(before + (equal + 1) / 2)
        return torch.cat(found) if found else first.new_zeros(0)


class PairSpearman(PairMetric):
    """Spearman's correlation of the cosines with the scores."""

    def compute(self) -> Tensor:
        """Return the correlation over all pairs, in [-1, 1]."""
        return spearman_corrcoef(*self._cosines())


class PairPearson(PairMetric):
    """Pearson's correlation of the cosines with the scores."""

    def compute(self) -> Tensor:
        """Return the correlation over all pairs, in [-1, 1]."""
        return pearson_corrcoef(*self._cosines())


class ReciprocalRank(PairMetric):
    """Mean of 1 / rank of each first text's partner."""

    def compute(self) -> Tensor:
        """Return the mean over all pairs, in (0, 1]."""
        return (1 / self._ranks()).mean()


class FirstPlace(PairMetric):
    """Fraction of the first texts whose partner is nearer than all other second texts."""

    def compute(self) -> Tensor:
        """Return the fraction of all pairs."""
        return (self._ranks() == 1).float().mean()
