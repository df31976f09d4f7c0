"""What a model is asked to do; metrics, loss and report depend on nothing else about it."""

from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional

from lightning_compress.errors import InputError
from lightning_compress.types import IGNORE_INDEX, ProblemType

__all__ = ["ProblemType", "Task", "next_token_labels", "problem_type_of", "task_of"]


Task = Literal["sequence-classification", "causal-lm", "masked-lm"]


def task_of(model: nn.Module) -> Task:
    """Tell the task of a Hugging Face model from its head.

    Raises:
        InputError: the model has no head, or one of another task.
    """
    # Only the tables of names: no model class is loaded.
    from transformers.models.auto import modeling_auto

    heads: dict[Task, set[str]] = {
        "sequence-classification": set(
            modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.values()
        ),
        "causal-lm": set(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()),
        "masked-lm": set(modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES.values()),
    }
    names = [cls.__name__ for cls in type(model).__mro__]
    for task, classes in heads.items():
        if classes.intersection(names):
            return task
    raise InputError(
        f"{names[0]} is not a model of a task known here; use a Hugging Face model for sequence "
        "classification, causal language modelling or masked language modelling"
    )


def problem_type_of(model: nn.Module) -> ProblemType | None:
    """Tell what kind of labels a Hugging Face classifier predicts; None for language models."""
    if task_of(model) != "sequence-classification":
        return None
    config: Any = model.config
    stated: ProblemType | None = getattr(config, "problem_type", None)
    if stated is not None:
        return stated
    return "regression" if config.num_labels == 1 else "single_label_classification"


def next_token_labels(labels: Tensor) -> Tensor:
    """Move labels [B, S] one place left, so that position t holds the token after t.

    The last position has no next token and is ignored; shapes stay, so the logits need no copy.
    """
    return functional.pad(labels, (0, 1), value=IGNORE_INDEX)[..., 1:]
