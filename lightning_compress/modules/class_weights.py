"""Weights of the classes in the loss, against unbalanced data."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lightning_compress.data.label_column import shown
from lightning_compress.errors import InputError
from lightning_compress.tasks import task_of
from lightning_compress.tasks.labels import labels_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ClassWeights = Literal["balanced"] | list[float] | dict[str, float]


def check_weights(option: ClassWeights | None) -> None:
    """Check what can be checked before the labels are known.

    Raises:
        InputError: the option is another word, or a weight is negative or not finite.
    """
    if option is None or option == "balanced":
        return
    if isinstance(option, str):
        raise InputError(
            f"model.class_weights is {option!r}: it must be balanced, a list of numbers, or a "
            "mapping from the names of the labels to numbers"
        )
    values = option.values() if isinstance(option, Mapping) else option
    if not all(math.isfinite(value) and value >= 0 for value in values):
        raise InputError(f"model.class_weights is {option}: weights are finite and at least 0")


def training_loss(
    model: "PreTrainedModel", option: ClassWeights | None, frequencies: Sequence[float] | None
) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss of the model's task, in which the classes have their weights.

    Args:
        model: a model with a head.
        option: the value of ``model.class_weights``.
        frequencies: fraction of the training examples with each label; None if unknown.

    Raises:
        InputError: see :func:`class_weights`, or the task has no classes.
    """
    task = task_of(model)
    if option is None:
        return task.loss
    names = labels_of(model).names or ()
    several = task.distribution == "bernoulli"
    weights = class_weights(option, names=names, frequencies=frequencies, several_labels=several)
    loss = task.weighted_loss(weights)
    each = ", ".join(f"{name} {weight:.4g}" for name, weight in zip(names, weights, strict=True))
    rank_zero_info(f"Weights of the classes in the loss: {each}.")
    return loss


def class_weights(
    option: ClassWeights,
    *,
    names: Sequence[str],
    frequencies: Sequence[float] | None,
    several_labels: bool,
) -> Tensor:
    """Compute the weight of each label.

    ``balanced`` gives the labels an equal share in the loss. With one class an example that is
    ``1 / (C f)`` for a class with the fraction ``f`` of the examples (Gary King and Langche Zeng,
    Logistic Regression in Rare Events Data, 2001, https://gking.harvard.edu/files/0s.pdf; the
    ``balanced`` of scikit-learn); with several labels it is ``(1 - f) / f``, for the examples that
    have the label. A label without examples has the weight 1.

    Args:
        option: the value of ``model.class_weights``.
        names: names of the labels, in their order.
        frequencies: fraction of the training examples with each label; None if unknown.
        several_labels: an example has any number of labels, and not one class.

    Returns:
        [C] float32.

    Raises:
        InputError: the option names other labels or another number of them, or the frequencies are
            needed and not known.
    """
    if isinstance(option, Mapping):
        if sorted(option) != sorted(names):
            raise InputError(
                f"model.class_weights names the labels {shown(sorted(option))}, and the data have "
                f"{shown(names)}: give each of them its weight"
            )
        option = [option[name] for name in names]
    if isinstance(option, list):
        if len(option) != len(names):
            raise InputError(
                f"model.class_weights has {len(option)} weights, and there are {len(names)} labels "
                f"({shown(names)}): give each of them its weight, in this order"
            )
        return torch.tensor(option, dtype=torch.float32)
    if frequencies is None:
        raise InputError(
            "model.class_weights is balanced, and the data module has no label_frequencies: give "
            "the weights as a list, or the data module this attribute, the fraction of the "
            "training examples with each label"
        )
    found = torch.tensor(frequencies)
    weights = (1 - found) / found if several_labels else 1 / (len(names) * found)
    return torch.where(found > 0, weights, 1.0)
