"""Extractive question answering: the tokens of a text where the answer starts and ends."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional
from torchmetrics import MetricCollection

from lightning_compress.tasks.answers import AnswerExactMatch, AnswerF1
from lightning_compress.tasks.task import Task
from lightning_compress.types import IGNORE_INDEX, Batch

_NOT_CHOSEN = -1e4  # logit of padding; finite in half precision, too


class QuestionAnswering(Task):
    """The first and the last token of an answer. Logits are [B, S, 2], of starts and of ends.

    Labels are [B, 1, L], see :class:`~lightning_compress.data.answer_labels.AnswerLabel`; the first
    two numbers are the positions.
    """

    name = "question-answering"
    auto_class = "AutoModelForQuestionAnswering"
    primary_metric = "f1"
    over_positions = True

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross entropy of start and end over the windows."""
        positions = labels[:, 0, :2].long()
        total = functional.cross_entropy(
            logits.float(), positions, ignore_index=IGNORE_INDEX, reduction="sum"
        )
        return total / torch.clamp((positions != IGNORE_INDEX).sum(), min=1)

    def metrics(
        self, num_labels: int | None, label_names: Sequence[str] | None = None
    ) -> MetricCollection:
        """SQuAD's F1 and exact match over all questions."""
        return MetricCollection({"f1": AnswerF1(), "exact_match": AnswerExactMatch()})

    def predictions_and_targets(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits [B, S, 2] and the labels [B, 1, L]."""
        return logits, labels

    def target_mask(self, labels: Tensor) -> Tensor:
        """Return which windows have positions, boolean [B]."""
        return labels[:, 0, 0] != IGNORE_INDEX

    def choices(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Return the logits of the starts of all windows, then of all ends, [2 B, S]."""
        starts, ends = logits.unbind(-1)
        return torch.cat([starts, ends]).masked_fill(~mask.bool().repeat(2, 1), _NOT_CHOSEN)

    def predict(self, logits: Tensor) -> Batch:
        """Return ``start_logits`` and ``end_logits``, each [B, S]."""
        starts, ends = logits.unbind(-1)
        return {"start_logits": starts, "end_logits": ends}

    def trivial_baseline(
        self, *, examples: int, label_counts: Sequence[int], vocabulary: int
    ) -> float:
        """Return the F1 of a span that shares a word with the answer now and then, 0.1.

        Where more windows than that have no answer, their fraction, plus two standard errors.
        """
        none = label_counts[0] / examples if label_counts else 0.0
        return max(0.1, float(none + 2 * (none * (1 - none) / examples) ** 0.5))

    def label_counts(self, labels: Tensor, num_labels: int) -> Tensor:
        """Return the number of windows without and with an answer, [num_labels]."""
        found = (labels[:, 0, 1] > 0).long()
        return torch.bincount(found, minlength=num_labels)
