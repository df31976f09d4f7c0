"""The loss of every task, shared by training and evaluation."""

import torch
from torch import Tensor
from torch.nn import functional

from lightning_compress.tasks.task import Task, next_token_labels
from lightning_compress.types import IGNORE_INDEX, ProblemType


def task_loss(
    task: Task, problem_type: ProblemType | None, logits: Tensor, labels: Tensor
) -> Tensor:
    """Compute the mean loss of a batch in float32, over its labelled rows or tokens.

    Args:
        task: what the model does.
        problem_type: what kind of labels a classifier predicts; None for language models.
        logits: [B, C] of a classifier ([B, 1] in regression), [B, S, V] of a language model.
        labels: [B] class indices; [B] numbers in regression; [B, C] zeros and ones in multi-label;
            [B, S] token ids aligned with the input in language modelling (the shift of causal
            models happens here). Without a label: see :func:`labelled_rows`; tokens have -100.

    Returns:
        A scalar: cross entropy, mean squared error or binary cross entropy. A batch with nothing
        to predict has loss zero, and so has every gradient.
    """
    logits = logits.float()
    if task != "sequence-classification":
        targets = next_token_labels(labels) if task == "causal-lm" else labels
        total = functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE_INDEX, reduction="sum"
        )
        return total / torch.clamp((targets != IGNORE_INDEX).sum(), min=1)
    labelled = labelled_rows(problem_type, labels)
    if not labelled.all():
        logits, labels = logits[labelled], labels[labelled]
        if not len(labels):
            return logits.sum()  # of nothing: zero, through which gradients flow
    if problem_type == "regression":
        return functional.mse_loss(logits.reshape(labels.shape), labels.float())
    if problem_type == "multi_label_classification":
        return functional.binary_cross_entropy_with_logits(logits, labels.float())
    return functional.cross_entropy(logits, labels)


def labelled_rows(problem_type: ProblemType | None, labels: Tensor) -> Tensor:
    """Tell which rows of a classifier's batch have a label: boolean [B].

    Args:
        problem_type: what kind of labels.
        labels: [B] or [B, C]; a row without a label has -100 for its class, or NaN throughout in
            regression and multi-label.
    """
    of_numbers = problem_type in ("regression", "multi_label_classification")
    missing = labels.isnan() if of_numbers else labels == IGNORE_INDEX
    return ~(missing.all(-1) if missing.dim() > 1 else missing)
