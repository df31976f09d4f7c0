"""Classification of texts, or of pairs of texts, into one of several classes."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import (
    BinaryF1Score,
    MulticlassAccuracy,
    MulticlassF1Score,
)

from lightning_compress.tasks.metrics import (
    MatthewsCorrCoef,
    MulticlassMatthewsCorrCoef,
    labelled_loss,
    require_labels,
)
from lightning_compress.tasks.task import Task
from lightning_compress.types import Batch


class Classification(Task):
    """One class per example. Logits are [B, C], labels [B] class indices."""

    name = "sequence-classification"
    problem_type = "single_label_classification"
    auto_class = "AutoModelForSequenceClassification"
    primary_metric = "accuracy"

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross entropy over the labelled examples."""
        return labelled_loss(functional.cross_entropy, logits, labels, self.target_mask(labels))

    def weighted_loss(self, class_weights: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """Return the loss in which an example counts as much as its class."""

        def weighted(logits: Tensor, labels: Tensor) -> Tensor:
            each = functional.cross_entropy(logits, labels, reduction="none")
            return (each * class_weights.to(labels.device)[labels]).mean()

        return lambda logits, labels: labelled_loss(
            weighted, logits, labels, self.target_mask(labels)
        )

    def metrics(
        self, num_labels: int | None, label_names: Sequence[str] | None = None
    ) -> MetricCollection:
        """Accuracy, Matthews correlation, and F1: of class 1 of two, else the mean over classes."""
        count = require_labels(num_labels)
        f1: Metric = MulticlassF1Score(count) if count != 2 else BinaryF1Score()
        mcc: Metric = MulticlassMatthewsCorrCoef(count) if count != 2 else MatthewsCorrCoef()
        accuracy = MulticlassAccuracy(count, average="micro")
        return MetricCollection({"accuracy": accuracy, "f1": f1, "mcc": mcc})

    def predict(self, logits: Tensor) -> Batch:
        """Return ``class`` [B], ``probabilities`` [B, C] and ``logits`` [B, C]."""
        probabilities = logits.softmax(-1)
        return {"class": logits.argmax(-1), "probabilities": probabilities, "logits": logits}

    def trivial_baseline(
        self, *, examples: int, label_counts: Sequence[int], vocabulary: int
    ) -> float:
        """Return the accuracy of the commonest class plus two standard errors."""
        accuracy = max(label_counts) / examples
        return float(accuracy + 2 * (accuracy * (1 - accuracy) / examples) ** 0.5)

    def label_counts(self, labels: Tensor, num_labels: int) -> Tensor:
        """Return the number of examples of each class, [num_labels]."""
        return torch.bincount(labels, minlength=num_labels)
