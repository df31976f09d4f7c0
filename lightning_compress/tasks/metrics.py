"""Losses and metrics that tasks share: those that torchmetrics lacks or computes otherwise."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional
from torchmetrics import Metric
from torchmetrics.classification import BinaryMatthewsCorrCoef

from lightning_compress.errors import InputError
from lightning_compress.types import IGNORE_INDEX


class Perplexity(Metric):
    """Exponential of the mean cross entropy over all tokens with a target.

    Computed from log-probabilities. The class of torchmetrics takes the logarithm of a softmax,
    which is infinite as soon as the probability of one token underflows, and copies all logits.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Add a batch: logits [B, S, V] and target tokens [B, S], -100 ignored."""
        for row, target in zip(logits, targets, strict=True):
            self.total += functional.cross_entropy(
                row.float(), target, ignore_index=IGNORE_INDEX, reduction="sum"
            )
        self.count += (targets != IGNORE_INDEX).sum()

    def compute(self) -> Tensor:
        """Return the perplexity over all batches; NaN without any target."""
        return torch.exp(self.total / self.count)


class MatthewsCorrCoef(BinaryMatthewsCorrCoef):
    """Matthews correlation of two classes; zero where predictions or labels are all one class.

    scikit-learn defines it so. The class of torchmetrics differs from zero there by some
    hundredths.
    """

    def compute(self) -> Tensor:
        """Return the coefficient over all batches, in [-1, 1]."""
        counts = self.confmat
        if bool((counts.sum(0) == 0).any() | (counts.sum(1) == 0).any()):
            return torch.zeros((), device=counts.device)
        return super().compute()


class MulticlassMatthewsCorrCoef(Metric):
    """Matthews correlation of any number of classes C, with memory for C counts.

    Gorodkin, "Comparing two K-category assignments by a K-category correlation coefficient", 2004,
    https://doi.org/10.1016/j.compbiolchem.2004.09.006, whose sums over the confusion matrix need
    the counts of its rows, columns and diagonal alone. The class of torchmetrics holds all C x C.

    Args:
        num_classes: C.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    correct: Tensor
    predicted: Tensor
    labelled: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.add_state("correct", torch.tensor(0), dist_reduce_fx="sum")
        for name in ("predicted", "labelled"):
            counts = torch.zeros(num_classes, dtype=torch.long)
            self.add_state(name, counts, dist_reduce_fx="sum")

    def update(self, predictions: Tensor, labels: Tensor) -> None:
        """Add a batch: logits [B, C] or classes [B], and the right classes [B]."""
        classes = predictions.argmax(-1) if predictions.ndim > 1 else predictions
        self.correct += (classes == labels).sum()
        self.predicted += torch.bincount(classes, minlength=self.num_classes)
        self.labelled += torch.bincount(labels, minlength=self.num_classes)

    def compute(self) -> Tensor:
        """Return the coefficient over all batches, in [-1, 1]; 0 if all of either is one class."""
        total = self.labelled.sum()
        both = self.correct * total - (self.predicted * self.labelled).sum()
        spreads = [total**2 - (counts**2).sum() for counts in (self.predicted, self.labelled)]
        scale = (float(spreads[0]) * float(spreads[1])) ** 0.5
        return torch.tensor(float(both) / scale if scale else 0.0, device=self.correct.device)


def require_labels(num_labels: int | None) -> int:
    """Return the number of labels.

    Raises:
        InputError: it is not known or not positive.
    """
    if num_labels is None or num_labels < 1:
        raise InputError(f"a classifier needs the number of its labels, not {num_labels}")
    return num_labels


def labelled_loss(
    loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, labels: Tensor, labelled: Tensor
) -> Tensor:
    """Compute the mean loss over the labelled examples of a batch, in float32.

    Args:
        loss: mean loss of logits [N, C] and labels [N, ...].
        logits: [B, C].
        labels: [B] or [B, C].
        labelled: boolean [B].

    Returns:
        A scalar; zero, with zero gradients, if no example is labelled.
    """
    logits = logits.float()
    if not labelled.all():
        logits, labels = logits[labelled], labels[labelled]
        if not len(labels):
            return logits.sum()  # the sum of nothing is zero, and gradients flow through it
    return loss(logits, labels)


def token_cross_entropy(
    logits: Tensor, targets: Tensor, class_weights: Tensor | None = None
) -> Tensor:
    """Compute the mean cross entropy over the tokens with a target, in float32.

    Args:
        logits: [B, S, C].
        targets: [B, S] class indices, -100 where there is no target.
        class_weights: [C] factor of the cross entropy of tokens of each class; None: 1.

    Returns:
        A scalar; zero, with zero gradients, if there is no target.
    """
    total = functional.cross_entropy(
        logits.float().flatten(0, 1),
        targets.flatten(),
        weight=class_weights,
        ignore_index=IGNORE_INDEX,
        reduction="sum",
    )
    return total / torch.clamp((targets != IGNORE_INDEX).sum(), min=1)
