"""Classification of the words of a text: named entities, or one tag a word as parts of speech."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from lightning_compress.data.entity_tags import are_entity_tags
from lightning_compress.tasks.entities import (
    EntityF1,
    EntityPrecision,
    EntityRecall,
)
from lightning_compress.tasks.metrics import require_labels, token_cross_entropy
from lightning_compress.tasks.task import Task
from lightning_compress.types import IGNORE_INDEX, Batch

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class TokenClassification(Task):
    """One tag for each word. Logits are [B, S, C], labels [B, S] tags.

    A word's tag stands at its first token; its other tokens, special tokens and padding have -100.
    """

    name = "token-classification"
    auto_class = "AutoModelForTokenClassification"
    per_token = True

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross entropy over the words."""
        return token_cross_entropy(logits, labels)

    def weighted_loss(self, class_weights: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """Return the loss in which a word counts as much as its tag."""
        return lambda logits, labels: token_cross_entropy(
            logits, labels, class_weights.to(labels.device)
        )

    def predict(self, logits: Tensor) -> Batch:
        """Return ``tag`` [B, S], those with the largest logits, and their ``probability``."""
        probability, tag = logits.softmax(-1).max(-1)
        return {"tag": tag, "probability": probability}

    def label_counts(self, labels: Tensor, num_labels: int) -> Tensor:
        """Return the number of words with each tag, [num_labels]."""
        return torch.bincount(labels[labels != IGNORE_INDEX], minlength=num_labels)


def _word_accuracy(count: int) -> Metric:
    return MulticlassAccuracy(count, average="micro", ignore_index=IGNORE_INDEX)


class EntityRecognition(TokenClassification):
    """Tags that mark entities of one or more words: ``B-person``, ``I-person``, ``O``."""

    primary_metric = "f1"

    def fits(self, config: "PreTrainedConfig") -> bool:
        """Whether the tags of a model are those of entities."""
        return are_entity_tags(list((config.id2label or {}).values()))

    def metrics(
        self, num_labels: int | None, label_names: Sequence[str] | None = None
    ) -> MetricCollection:
        """F1, precision and recall of whole entities, and the accuracy of single words."""
        count = require_labels(num_labels)
        names = list(label_names or ())
        return MetricCollection(
            {
                "f1": EntityF1(names),
                "precision": EntityPrecision(names),
                "recall": EntityRecall(names),
                "accuracy": _word_accuracy(count),
            }
        )

    def trivial_baseline(
        self, *, examples: int, label_counts: Sequence[int], vocabulary: int
    ) -> float:
        """Return a bound of the F1 of one tag for all words.

        ``O``, the commonest tag, finds no entity. Any other finds at most the entities whose only
        word has it, and predicts that every word is one.
        """
        words, others = sum(label_counts), sorted(label_counts, reverse=True)[1:]
        found = max(others, default=0)
        return 2 * found / (words + found) if found else 0.0


class WordTagging(TokenClassification):
    """Tags that stand for single words, such as parts of speech."""

    primary_metric = "accuracy"

    def metrics(
        self, num_labels: int | None, label_names: Sequence[str] | None = None
    ) -> MetricCollection:
        """Accuracy of the words, and the mean F1 of the tags."""
        count = require_labels(num_labels)
        f1 = MulticlassF1Score(count, average="macro", ignore_index=IGNORE_INDEX)
        return MetricCollection({"accuracy": _word_accuracy(count), "f1": f1})

    def trivial_baseline(
        self, *, examples: int, label_counts: Sequence[int], vocabulary: int
    ) -> float:
        """Return the accuracy of the commonest tag plus two standard errors."""
        words = sum(label_counts)
        accuracy = max(label_counts) / words
        return float(accuracy + 2 * (accuracy * (1 - accuracy) / words) ** 0.5)
