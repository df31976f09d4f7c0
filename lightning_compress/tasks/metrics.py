"""The metrics of every task, by torchmetrics."""

import warnings
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import (
    BinaryF1Score,
    BinaryMatthewsCorrCoef,
    MulticlassAccuracy,
    MulticlassF1Score,
    MulticlassMatthewsCorrCoef,
    MultilabelAccuracy,
    MultilabelF1Score,
)
from torchmetrics.regression import MeanSquaredError, PearsonCorrCoef, SpearmanCorrCoef

from lightning_compress.errors import InputError
from lightning_compress.tasks.task import Task, next_token_labels
from lightning_compress.types import IGNORE_INDEX, ProblemType


class Perplexity(Metric):
    """The exponential of the mean cross entropy over all tokens that are to be predicted.

    Works on log-probabilities: torchmetrics' own class takes the logarithm of a softmax, which is
    infinite as soon as one token's probability underflows, and keeps a second copy of all logits.
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
        """Add a batch: logits [B, S, V] and the tokens [B, S] they should predict, -100 ignored."""
        for row, target in zip(logits, targets, strict=True):
            self.total += functional.cross_entropy(
                row.float(), target, ignore_index=IGNORE_INDEX, reduction="sum"
            )
        self.count += (targets != IGNORE_INDEX).sum()

    def compute(self) -> Tensor:
        """Return the perplexity over all batches; nan when there was nothing to predict."""
        return torch.exp(self.total / self.count)


class MatthewsCorrCoef(BinaryMatthewsCorrCoef):
    """Of two classes; zero where only one of them is predicted or asked for, as in scikit-learn.

    torchmetrics' own class returns the limit of another term there, some hundredths off zero.
    """

    def compute(self) -> Tensor:
        """Return the coefficient over all batches, in [-1, 1]."""
        counts = self.confmat
        if bool((counts.sum(0) == 0).any() | (counts.sum(1) == 0).any()):
            return torch.zeros((), device=counts.device)
        return super().compute()


def primary_metric(
    task: Task, problem_type: ProblemType | None
) -> tuple[str, Literal["max", "min"]]:
    """Name the metric that decides which model is better, and whether more is better."""
    if task != "sequence-classification":
        return "perplexity", "min"
    if problem_type == "regression":
        return "spearman", "max"
    if problem_type == "multi_label_classification":
        return "f1", "max"
    return "accuracy", "max"


def metrics_for(
    task: Task, problem_type: ProblemType | None, num_labels: int | None
) -> MetricCollection:
    """Build the metrics of a task, to be updated with :func:`predictions_and_targets`.

    Args:
        task: what the model does.
        problem_type: what kind of labels a classifier predicts; None for language models.
        num_labels: how many classes a classifier knows.

    Returns:
        Language models: perplexity. Regression: pearson, spearman, mse. Multi-label: f1 and
        accuracy over all labels of all examples. Single-label: accuracy, mcc, and f1, which is
        that of class 1 when there are two classes and the mean over the classes otherwise.

    Raises:
        InputError: a classifier without a number of labels.
    """
    if task != "sequence-classification":
        return MetricCollection({"perplexity": Perplexity()})
    if problem_type == "regression":
        with warnings.catch_warnings():
            # It says on every construction that it keeps all predictions, as it has to.
            warnings.filterwarnings("ignore", message="Metric `SpearmanCorrcoef`")
            return MetricCollection(
                {
                    "pearson": PearsonCorrCoef(),
                    "spearman": SpearmanCorrCoef(),
                    "mse": MeanSquaredError(),
                }
            )
    if num_labels is None or num_labels < 1:
        raise InputError(f"a classifier needs the number of its labels, not {num_labels}")
    if problem_type == "multi_label_classification":
        return MetricCollection(
            {
                "f1": MultilabelF1Score(num_labels, average="micro"),
                "accuracy": MultilabelAccuracy(num_labels, average="micro"),
            }
        )
    accuracy = MulticlassAccuracy(num_labels, average="micro")
    f1: Metric = MulticlassF1Score(num_labels) if num_labels != 2 else BinaryF1Score()
    mcc: Metric = MulticlassMatthewsCorrCoef(num_labels) if num_labels != 2 else MatthewsCorrCoef()
    return MetricCollection({"accuracy": accuracy, "f1": f1, "mcc": mcc})


def predictions_and_targets(
    task: Task, problem_type: ProblemType | None, logits: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Turn what a model and a batch give into what its metrics take.

    Args:
        task: what the model does.
        problem_type: what kind of labels a classifier predicts; None for language models.
        logits: [B, C] of a classifier, [B, S, V] of a language model.
        labels: as for :func:`~lightning_compress.evaluation.loss.task_loss`.

    Returns:
        Single-label: class indices [B] twice. Multi-label: zeros and ones [B, C] twice.
        Regression: numbers shaped like the labels, twice. Language models: the logits and, for each
        position, the token to predict there [B, S] (the shift of causal models happens here).
    """
    if task == "causal-lm":
        return logits, next_token_labels(labels)
    if task == "masked-lm":
        return logits, labels
    if problem_type == "regression":
        return logits.float().reshape(labels.shape), labels.float()
    if problem_type == "multi_label_classification":
        return (logits > 0).long(), labels.long()
    return logits.argmax(-1), labels
