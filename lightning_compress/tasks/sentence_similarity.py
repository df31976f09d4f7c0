"""Embeddings of texts, compared by their cosine: by scores of pairs, or by which texts belong.

Reimers, Gurevych, "Sentence-BERT: Sentence Embeddings using Siamese BERT-Networks", 2019,
arXiv:1908.10084. Henderson et al., "Efficient Natural Language Response Suggestion for Smart
Reply", 2017, arXiv:1705.00652: the other texts of a batch as negatives.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import MetricCollection

from lightning_compress.errors import InputError
from lightning_compress.models.sentence_embedding import state_embedding_
from lightning_compress.tasks.pair_metrics import (
    FirstPlace,
    PairPearson,
    PairSpearman,
    ReciprocalRank,
)
from lightning_compress.tasks.task import Task
from lightning_compress.types import Batch

_TEMPERATURE = 0.05


class SentencePairs(Task):
    """The texts of pairs, each an example of its own. Logits are embeddings [B, H].

    Labels are [B, 2] float32: the number of the text, of which 2 i and 2 i + 1 are pair i, and the
    score of the pair in [0, 1] or, of pairs that belong together, NaN. The texts of a pair are in
    one batch. A text without a pair has NaN for a number.
    """

    name = "sentence-similarity"
    auto_class = "AutoModel"
    distribution = "embedding"
    declared = True
    embeds = True

    def declare_(self, model: nn.Module) -> None:
        """Note the task, and how embeddings are computed unless the model states it."""
        super().declare_(model)
        state_embedding_(model)

    def target_mask(self, labels: Tensor) -> Tensor:
        """Return which texts are of a pair, boolean [B]."""
        return ~labels[:, 0].isnan()

    def decisions(self, logits: Tensor) -> None:
        """Return None: embeddings are numbers."""

    def predictions_and_targets(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the embeddings [B, H] and the labels [B, 2]."""
        return logits, labels

    def predict(self, logits: Tensor) -> Batch:
        """Return ``embedding`` [B, H]."""
        return {"embedding": logits}


class SentenceSimilarity(SentencePairs):
    """Pairs with a score: how similar the two texts are."""

    problem_type = "regression"
    primary_metric = "spearman"

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean squared difference of cosine and score over the pairs."""
        first, second, scores = _apart(logits, labels)
        if not len(scores):
            return logits.float().sum() * 0.0
        return functional.mse_loss(functional.cosine_similarity(first, second), scores)

    def metrics(
        self, num_labels: int | None, label_names: Sequence[str] | None = None
    ) -> MetricCollection:
        """Spearman's and Pearson's correlation of cosine and score."""
        return MetricCollection({"spearman": PairSpearman(), "pearson": PairPearson()})

    def trivial_baseline(
        self, *, examples: int, label_counts: Sequence[int], vocabulary: int
    ) -> float:
        """Return two standard errors of a correlation of zero."""
        return float(2 / max(1, examples // 2 - 1) ** 0.5)


class SentenceRetrieval(SentencePairs):
    """Pairs of texts that belong together: which second text belongs to a first one."""

    problem_type = "single_label_classification"
    primary_metric = "mrr"

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the cross entropy of each first text's partner among all second texts.

        The logits are cosines divided by the temperature 0.05. Batches of one pair have loss zero.
        """
        first, second, scores = _apart(logits, labels)
        if not len(scores):
            return logits.float().sum() * 0.0
        cosines = functional.normalize(first, dim=-1) @ functional.normalize(second, dim=-1).T
        partners = torch.arange(len(first), device=cosines.device)
        return functional.cross_entropy(cosines / _TEMPERATURE, partners)

    def metrics(
        self, num_labels: int | None, label_names: Sequence[str] | None = None
    ) -> MetricCollection:
        """Mean reciprocal rank and first places of the partner among all second texts."""
        return MetricCollection({"mrr": ReciprocalRank(), "accuracy": FirstPlace()})

    def trivial_baseline(
        self, *, examples: int, label_counts: Sequence[int], vocabulary: int
    ) -> float:
        """Return the mean reciprocal rank of a random order plus two standard errors."""
        pairs = max(1, examples // 2)
        ranks = 1 / torch.arange(1, pairs + 1, dtype=torch.float64)
        return float(ranks.mean() + 2 * (ranks.var(correction=0) / pairs) ** 0.5)


def _apart(embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """First and second texts [P, H] in float32, and the scores [P]."""
    known = ~labels[:, 0].isnan()
    embeddings, labels = embeddings.float()[known], labels[known]
    order = labels[:, 0].argsort()
    firsts, seconds = order[0::2], order[1::2]
    numbers = labels[:, 0]
    if len(order) % 2 or not torch.equal(numbers[firsts] + 1, numbers[seconds]):
        raise InputError(
            "a batch holds one text of a pair and not the other: use "
            "lightning_compress.data.SentencePairDataModule, or keep pairs together"
        )
    return embeddings[firsts], embeddings[seconds], labels[firsts, 1]
