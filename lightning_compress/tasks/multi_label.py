"""Classification of texts by several labels, each of which holds or not."""

from collections.abc import Callable, Sequence

from torch import Tensor
from torch.nn import functional
from torchmetrics import MetricCollection
from torchmetrics.classification import MultilabelAccuracy, MultilabelF1Score

from lightning_compress.tasks.metrics import labelled_loss, require_labels
from lightning_compress.tasks.task import Task
from lightning_compress.types import Batch


class MultiLabelClassification(Task):
    """Any number of labels per example. Logits and labels are [B, C]; labels are 0 or 1."""

    name = "sequence-classification"
    problem_type = "multi_label_classification"
    auto_class = "AutoModelForSequenceClassification"
    primary_metric = "f1"
    distribution = "bernoulli"

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean binary cross entropy over the labelled examples and all labels."""
        labelled = self.target_mask(labels)
        return labelled_loss(
            functional.binary_cross_entropy_with_logits, logits, labels.float(), labelled
        )

    def weighted_loss(self, class_weights: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """Return the loss in which an example that has a label counts as much as the label."""

        def weighted(logits: Tensor, labels: Tensor) -> Tensor:
            return functional.binary_cross_entropy_with_logits(
                logits, labels, pos_weight=class_weights.to(labels.device)
            )

        return lambda logits, labels: labelled_loss(
            weighted, logits, labels.float(), self.target_mask(labels)
        )

    def metrics(
        self, num_labels: int | None, label_names: Sequence[str] | None = None
    ) -> MetricCollection:
        """F1 and accuracy over all labels of all examples (micro average)."""
        count = require_labels(num_labels)
        return MetricCollection(
            {
                "f1": MultilabelF1Score(count, average="micro"),
                "accuracy": MultilabelAccuracy(count, average="micro"),
            }
        )

    def predictions_and_targets(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return zeros and ones [B, C] twice."""
        return (logits > 0).long(), labels.long()

    def target_mask(self, labels: Tensor) -> Tensor:
        """Return which examples have labels, boolean [B]: those that are not NaN throughout."""
        return ~labels.isnan().all(-1)

    def decisions(self, logits: Tensor) -> Tensor:
        """Return which labels are predicted, boolean [B, C]."""
        return logits > 0

    def predict(self, logits: Tensor) -> Batch:
        """Return ``probabilities`` [B, C] and ``logits`` [B, C]."""
        return {"probabilities": logits.sigmoid(), "logits": logits}

    def trivial_baseline(
        self, *, examples: int, label_counts: Sequence[int], vocabulary: int
    ) -> float:
        """Return the micro F1 of always predicting the commonest labels, as many as are best."""
        hits, best, total = 0, 0.0, sum(label_counts)
        for labels, count in enumerate(sorted(label_counts, reverse=True), start=1):
            hits += count
            best = max(best, 2 * hits / (examples * labels + total))
        return best

    def label_counts(self, labels: Tensor, num_labels: int) -> Tensor:
        """Return the number of examples with each label, [num_labels]."""
        return labels.sum(0)
