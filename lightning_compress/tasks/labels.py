"""What the outputs of a model stand for, by its configuration, and the metrics for them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lightning_compress.data.labels import KnownLabels
from lightning_compress.errors import InputError
from lightning_compress.tasks import task_of
from lightning_compress.types import ProblemType

if TYPE_CHECKING:
    from torchmetrics import MetricCollection
    from transformers import PreTrainedModel


def named_outputs(
    id2label: Mapping[Any, Any] | None, problem_type: ProblemType | None = None
) -> KnownLabels:
    """Read the labels off the fields of a configuration.

    Args:
        id2label: names by index; JSON makes the indices strings.
        problem_type: kind of labels. Without it one output is a regression, as transformers has
            it, and several are one class or several labels, which the data decide.

    Raises:
        InputError: the indices are not those from 0.
    """
    names = {int(index): str(name) for index, name in (id2label or {}).items()}
    if not names or sorted(names) != list(range(len(names))):
        raise InputError(
            f"id2label in the model's config.json has the indices {sorted(names)}: it must have "
            "all those from 0"
        )
    if problem_type is None and len(names) == 1:
        problem_type = "regression"
    ordered = tuple(names[index] for index in range(len(names)))
    return KnownLabels(problem_type, len(ordered), ordered)


def labels_of(model: "PreTrainedModel") -> KnownLabels:
    """What the outputs of a model stand for; nothing of a language model or of embeddings."""
    task = task_of(model)
    if task.over_vocabulary or task.embeds:
        return KnownLabels()
    return named_outputs(model.config.id2label, model.config.problem_type)


def metrics_of(model: "PreTrainedModel") -> "MetricCollection":
    """Build the metrics of a model's task, for its labels."""
    return task_of(model).metrics(model.config.num_labels, labels_of(model).names)


def require_same_names(one: KnownLabels, whose: str, other: KnownLabels, whose_other: str) -> None:
    """Refuse two sets of names of which the first is not the second in the same order.

    Names that are no more than numbers from 0 fit all others; case does not count.

    Raises:
        InputError: they differ.
    """
    if one.names is None or other.names is None or one.numbered or other.numbered:
        return
    names, others = ([name.casefold() for name in each.names or ()] for each in (one, other))
    if names != others:
        raise InputError(
            f"{whose} has the labels {', '.join(one.names)} and {whose_other} "
            f"{', '.join(other.names)}, in this order: both need the same in the same order; fine-"
            "tune one of them on the other's data first"
        )
