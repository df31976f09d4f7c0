"""What a module knows of its labels before the data are read, and whether the data fit it."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lightning_compress.data.info import DataInfo
from lightning_compress.data.labels import KnownLabels
from lightning_compress.errors import InputError
from lightning_compress.tasks import Task
from lightning_compress.tasks.labels import named_outputs, require_same_names

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def has_trained_head(config: "PreTrainedConfig", task: Task) -> bool:
    """Whether a configuration is that of a model with a head for the task, not a bare encoder."""
    head = task.auto_class.removeprefix("AutoModel")
    return any(architecture.endswith(head) for architecture in config.architectures or [])


def known_labels(options: Mapping[str, Any], task: Task) -> KnownLabels:
    """What the options of a FineTuningModule say about the labels.

    The outputs of a trained model keep their meaning; a new head has none before the data are
    read.

    Args:
        options: ``pretrained``, ``config``, ``num_labels`` and ``problem_type``.
        task: what the model is trained for.

    Raises:
        InputError: ``model.config.id2label`` and ``model.num_labels`` contradict each other.
    """
    if task.over_vocabulary or task.embeds:
        return KnownLabels()
    config = options["config"] or {}
    count = options["num_labels"] or config.get("num_labels")
    problem = options["problem_type"] or config.get("problem_type")
    named = _names_in(options["pretrained"], task)
    if named is not None and count not in (None, named.num_labels):
        named = None  # it gets a new head
    if config.get("id2label") is not None:
        named = named_outputs(config["id2label"], None if named is None else named.problem_type)
        if count not in (None, named.num_labels):
            raise InputError(
                f"model.config.id2label names {named.num_labels} labels and model.num_labels is "
                f"{count}: leave one of them out"
            )
    if named is not None:
        return replace(named, problem_type=problem or named.problem_type)
    if problem is None and count == 1:
        problem = "regression"  # as transformers has it
    if problem == "regression" and count not in (None, 1):
        raise InputError(
            f"model.num_labels is {count} and model.problem_type regression, which has one output: "
            "leave model.num_labels out"
        )
    if problem == "single_label_classification" and count == 1:
        raise InputError("model.num_labels is 1: a classification has at least 2 classes")
    return KnownLabels(problem, count)


def _names_in(pretrained: str | None, task: Task) -> KnownLabels | None:
    """The labels of a trained classifier; None for a bare encoder and where nothing can be read."""
    import transformers

    if pretrained is None:
        return None
    try:
        config = transformers.AutoConfig.from_pretrained(pretrained)
    except (OSError, ValueError):
        return None  # the error is raised when the model is built
    if not has_trained_head(config, task):
        return None
    return named_outputs(config.id2label, config.problem_type)


def label_fields(known: KnownLabels, data: DataInfo) -> dict[str, Any]:
    """Fields of the configuration of a model for some data, as far as they are known.

    Args:
        known: what the model says.
        data: facts of the data module, which may be one that does not ask the model.

    Raises:
        InputError: the data have other labels than the model, or in another order.
    """
    _require_same_number(known, data.num_labels)
    names = KnownLabels(names=tuple(data.label_names) if data.label_names else None)
    require_same_names(known, "the model", names, "the data module")
    fields: dict[str, Any] = {
        "num_labels": known.num_labels or data.num_labels,
        "problem_type": known.problem_type or data.problem_type,
    }
    own = known.names if known.names and not (known.numbered and names.names) else names.names
    if own is not None and len(own) == fields["num_labels"]:
        fields["id2label"] = dict(enumerate(own))
        fields["label2id"] = {name: index for index, name in enumerate(own)}
    return fields


def _require_same_number(known: KnownLabels, count: int | None) -> None:
    own = known.num_labels
    if None in (own, count) or own == count:
        return
    if known.names is not None:
        raise InputError(
            f"the data have {count} labels and the model has a head for {own}: use data with the "
            f"model's labels, or set model.num_labels: {count} to put an untrained head in its "
            "place"
        )
    if count > own:  # type: ignore[operator]  # neither is None
        raise InputError(
            f"the data have {count} labels and model.num_labels is {own}: leave it out, or use "
            "data with fewer labels"
        )
