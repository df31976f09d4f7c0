"""Reranking by a cross-encoder, which reads a query with one document and gives its relevance.

Nogueira, Cho, "Passage Re-ranking with BERT", 2019, arXiv:1901.04085: the loss is the cross entropy
of single pairs. With one output instead of two it is that of Sentence Transformers,
``BinaryCrossEntropyLoss``, https://sbert.net/docs/package_reference/cross_encoder/losses.html.
"""

from collections.abc import Callable, Sequence

from torch import Tensor
from torch.nn import functional
from torchmetrics import Metric, MetricCollection

from lightning_compress.errors import InputError
from lightning_compress.tasks.metrics import labelled_loss
from lightning_compress.tasks.ranking import LuckyDCG, NormalizedDCG, ReciprocalRank
from lightning_compress.tasks.task import Task
from lightning_compress.types import Batch


class Reranking(Task):
    """One relevance for each pair of a query and a document. Logits are [B, 1].

    Labels are [B, 2] float32: the number of the query, and the relevance in [0, 1], NaN for a pair
    without a label.
    """

    name = "reranking"
    auto_class = "AutoModelForSequenceClassification"
    primary_metric = "ndcg_at_10"
    distribution = "bernoulli"
    declared = True

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean binary cross entropy over the labelled pairs."""
        return labelled_loss(
            functional.binary_cross_entropy_with_logits,
            logits,
            labels[:, 1:].float(),
            self.target_mask(labels),
        )

    def weighted_loss(self, class_weights: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """Return the loss in which a relevant pair counts as much as the one weight says."""

        def weighted(logits: Tensor, relevance: Tensor) -> Tensor:
            return functional.binary_cross_entropy_with_logits(
                logits, relevance, pos_weight=class_weights.to(relevance.device)
            )

        return lambda logits, labels: labelled_loss(
            weighted, logits, labels[:, 1:].float(), self.target_mask(labels)
        )

    def metrics(
        self, num_labels: int | None, label_names: Sequence[str] | None = None
    ) -> MetricCollection:
        """nDCG and mean reciprocal rank, of 10 documents of each query.

        Raises:
            InputError: the model has more than one output.
        """
        if num_labels != 1:
            raise InputError(
                f"the model has {num_labels} outputs and a reranker has one, the relevance: set "
                "model.num_labels: 1 to train a new head, or choose another model"
            )
        return MetricCollection({"ndcg_at_10": NormalizedDCG(), "mrr_at_10": ReciprocalRank()})

    def predictions_and_targets(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scores [B] and the labels [B, 2].

        Raises:
            InputError: the labels are in 16 bits, as ``bf16-true`` of Lightning makes them.
        """
        if labels.dtype.itemsize < 4:
            kind = str(labels.dtype).removeprefix("torch.")
            raise InputError(
                f"trainer.precision: the labels are rounded to {kind}, which does not tell the "
                "numbers of many queries apart: use 32-true, or bf16-mixed or 16-mixed"
            )
        return logits.float().squeeze(-1), labels

    def target_mask(self, labels: Tensor) -> Tensor:
        """Return which pairs have a relevance, boolean [B]."""
        return ~labels[:, 1].isnan()

    def decisions(self, logits: Tensor) -> Tensor:
        """Return which documents are rather relevant than not, boolean [B, 1]."""
        return logits > 0

    def predict(self, logits: Tensor) -> Batch:
        """Return ``score`` [B], the predicted relevance in [0, 1], and its ``logit`` [B]."""
        logit = logits.squeeze(-1)
        return {"score": logit.sigmoid(), "logit": logit}

    def trivial_baseline(
        self, *, examples: int, label_counts: Sequence[int], vocabulary: int
    ) -> float:
        """Return 1: what a random order reaches depends on the queries, see `baseline_metric`."""
        return 1.0

    def baseline_metric(self) -> Metric:
        """Return the nDCG of a random order, plus two standard errors."""
        return LuckyDCG()
