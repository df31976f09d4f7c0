"""Tasks: the model class, loss, metrics and predictions of what a model is trained for.

A new task is a file with a subclass of :class:`~lightning_compress.tasks.task.Task` and a line in
``TASKS``.
"""

import re
from collections.abc import Collection
from typing import Any

from torch import nn

from lightning_compress.errors import InputError
from lightning_compress.tasks.classification import Classification
from lightning_compress.tasks.images import (
    ImageClassification,
    ImageRegression,
    MultiLabelImageClassification,
)
from lightning_compress.tasks.language_modeling import CausalLM, MaskedLM
from lightning_compress.tasks.multi_label import MultiLabelClassification
from lightning_compress.tasks.question_answering import QuestionAnswering
from lightning_compress.tasks.regression import Regression
from lightning_compress.tasks.reranking import Reranking
from lightning_compress.tasks.sentence_similarity import SentenceRetrieval, SentenceSimilarity
from lightning_compress.tasks.task import Task
from lightning_compress.tasks.token_classification import EntityRecognition, WordTagging
from lightning_compress.types import ProblemType

__all__ = ["TASKS", "Task", "declare_task_", "task_named", "task_names", "task_of"]

TASKS: list[Task] = [
    Classification(),
    MultiLabelClassification(),
    Regression(),
    CausalLM(),
    MaskedLM(),
    EntityRecognition(),
    WordTagging(),
    QuestionAnswering(),
    Reranking(),
    ImageClassification(),
    MultiLabelImageClassification(),
    ImageRegression(),
    SentenceSimilarity(),
    SentenceRetrieval(),
]
"""All tasks; of several with one name the first is the default."""

DECLARED_TASK = "finetuning_task"
"""Field of a configuration that names a task which the class of the model does not imply."""


def task_names() -> list[str]:
    """Return the values of the option ``task``."""
    return list(dict.fromkeys(task.name for task in TASKS))


def task_named(name: str, problem_type: ProblemType | None = None) -> Task:
    """Find a task by its name and, where several share the name, by its problem type.

    Args:
        name: ``sequence-classification``, ``causal-lm``, ``masked-lm``, ...
        problem_type: kind of labels; None: the first task of that name.

    Raises:
        InputError: there is no such task.
    """
    found = [task for task in TASKS if task.name == name]
    if not found:
        raise InputError(f"there is no task {name!r}: choose one of {', '.join(task_names())}")
    return _with_problem_type(found, problem_type)


def task_of(model: nn.Module) -> Task:
    """Find the task of a Hugging Face model by its class and its configuration.

    Raises:
        InputError: the model has no head, or the head of a task that is not in ``TASKS``.
    """
    config: Any = getattr(model, "config", None)
    possible = _tasks_of_class(model)
    named = getattr(config, DECLARED_TASK, None)
    found = [task for task in possible if task.name == named]
    found = found or [task for task in possible if not task.declared]
    if not found:
        raise InputError(
            f"{type(model).__name__} has no head of a supported task: use a Hugging Face model for "
            f"{', '.join(task_names())}"
        )
    found = [task for task in found if task.name == found[0].name and task.fits(config)]
    problem_type: ProblemType | None = getattr(config, "problem_type", None)
    if problem_type is None and len(found) > 1:
        one_number = getattr(config, "num_labels", None) == 1
        problem_type = "regression" if one_number else None
    return _with_problem_type(found, problem_type)


def declare_task_(model: nn.Module, names: Collection[str]) -> None:
    """Note in a model's configuration that its task is one that its class does not imply.

    Args:
        model: a Hugging Face model.
        names: of the tasks that it is to have; those that its class implies, or excludes, change
            nothing.
    """
    for task in _tasks_of_class(model):
        if task.declared and task.name in names:
            task.declare_(model)


def _tasks_of_class(model: nn.Module) -> list[Task]:
    names = {cls.__name__ for cls in type(model).__mro__}
    return [task for task in TASKS if names & _model_classes(task.auto_class)]


def _with_problem_type(tasks: list[Task], problem_type: ProblemType | None) -> Task:
    if problem_type is None or not any(task.problem_type for task in tasks[1:]):
        return tasks[0]
    for task in tasks:
        if task.problem_type == problem_type:
            return task
    known = ", ".join(str(task.problem_type) for task in tasks)
    raise InputError(f"there is no problem type {problem_type!r}: choose one of {known}")


def _model_classes(auto_class: str) -> set[str]:
    """Return the names of the model classes behind an auto class, without loading any of them."""
    from transformers.models.auto import modeling_auto

    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", auto_class.removeprefix("Auto")).upper()
    names = getattr(modeling_auto, f"{words}_MAPPING_NAMES").values()
    return {one for name in names for one in (name if isinstance(name, tuple) else (name,))}
