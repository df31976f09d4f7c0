"""Accuracy guard: quantize only as much of a model as keeps the loss of its metric small.

The modules that cost most when they alone are quantized are given back to floating point, one more
at a time, until the loss fits. What was given back is recorded in the manifest.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from lightning_compress.models.manifest import manifest_of, set_manifest_
from lightning_compress.quantization.precisions import SCHEMES, PrecisionName

ACCURACY_GUARD = "accuracy_guard"
"""Key of the record in the edit."""

GIVEN_BACK = "given back by max_loss"

Group = tuple[str, ...]
"""Names of modules with one weight, which are quantized or not together."""


@dataclass(frozen=True)
class GuardChoice:
    """Which modules stay in floating point so that the loss fits.

    Args:
        fits: whether the last of ``losses`` is small enough.
        losses: in points, of the model with everything quantized, then with one more group given
            back at a time.
        given_back: loss of each module that is given back, when it alone is quantized, in points,
            by name, largest first; empty if nothing fits.
    """

    fits: bool
    losses: list[float]
    given_back: dict[str, float]


def groups_by_weight(model: nn.Module, names: Iterable[str]) -> list[Group]:
    """Group the names of modules that share their weight, such as embeddings and a tied head."""
    groups: dict[object, Group] = {}
    for name in names:
        weight = model.get_submodule(name).weight
        groups[weight] = (*groups.get(weight, ()), name)
    return list(groups.values())


def choose_given_back(
    groups: Sequence[Group],
    loss_without: Callable[[Sequence[str]], float],
    *,
    max_loss: float,
    divergences: Callable[[], Sequence[float]],
) -> GuardChoice:
    """Choose the modules to give back: along the ranking as few as keep the loss in bounds.

    The ranking is by the loss of each group when it alone is quantized, ties by its divergence.

    Args:
        groups: of the modules that can be quantized; empty if the model is quantized as a whole.
        loss_without: measures the loss in points, with the modules of these names in floating
            point and all others quantized; infinite where the metric is not finite.
        max_loss: largest loss that fits, in points.
        divergences: measures the divergence of each group when it alone is quantized; only called
            if modules have to be given back.
    """
    losses = [loss_without([])]
    fits = losses[0] <= max_loss
    if fits or len(groups) < 2:
        return GuardChoice(fits, losses, {})
    alone = [
        loss_without([name for other in groups if other != group for name in other])
        for group in groups
    ]
    ranked = sorted(
        zip(groups, alone, divergences(), strict=True), key=lambda one: one[1:], reverse=True
    )
    given_back: dict[str, float] = {}
    for group, loss, _ in ranked[:-1]:  # one module at least stays quantized
        given_back |= dict.fromkeys(group, loss)
        losses.append(loss_without(list(given_back)))
        if losses[-1] <= max_loss:
            return GuardChoice(True, losses, given_back)
    return GuardChoice(False, losses, {})


def record_guard_(
    model: nn.Module,
    choice: GuardChoice,
    *,
    max_loss: float,
    metric: str,
    before: float,
    examples: int,
) -> str:
    """Add a choice to the last edit of the manifest, which quantized the model.

    Args:
        model: the quantized model.
        choice: one that fits.
        max_loss: the largest loss that fitted, in points.
        metric: the primary metric.
        before: its value in floating point.
        examples: number of validation examples.

    Returns:
        A description of it, see :func:`describe_guard`.
    """
    record = {
        "max_loss": max_loss,
        "metric": metric,
        "floating_point": before,
        "points_lost": choice.losses[-1],
        "standard_error": standard_error(metric, before, examples),
        "examples": examples,
        # JSON has no infinity.
        "given_back": {n: x if math.isfinite(x) else None for n, x in choice.given_back.items()},
    }
    *others, edit = manifest_of(model)
    edit = {**edit, ACCURACY_GUARD: record}
    if choice.given_back:
        edit["skipped"] = edit["skipped"] | dict.fromkeys(choice.given_back, GIVEN_BACK)
    set_manifest_(model, [*others, edit])
    return describe_guard(record)


def standard_error(metric: str, value: float, examples: int) -> float | None:
    """Standard error of an accuracy in points, since the examples are a sample; else None."""
    return 100 * math.sqrt(value * (1 - value) / examples) if metric == "accuracy" else None


def describe_guard(record: Mapping[str, Any]) -> str:
    """Describe in a sentence what :func:`record_guard_` has recorded."""
    lost, error = record["points_lost"], record["standard_error"]
    text = (
        f"accuracy guard (max_loss {record['max_loss']:g}): quantization costs {lost:.2f} points "
        f"of {record['metric']} on {record['examples']:,} validation examples"
    )
    if error is not None and abs(lost) < error:
        text += f" (below the standard error of {error:.2f}: no difference)"
    # Saved folders sort by name.
    alone = {n: math.inf if loss is None else loss for n, loss in record["given_back"].items()}
    given_back = [
        f"{name} ({f'{alone[name]:.2f}' if math.isfinite(alone[name]) else 'not finite'} alone)"
        for name in sorted(alone, key=lambda name: -alone[name])
    ]
    if given_back:
        text += f"; given back to floating point: {', '.join(given_back[:3])}"
    if len(given_back) > 3:
        text += f" and {len(given_back) - 3} more"
    return text


def describe_refusal(
    choice: GuardChoice | None,
    *,
    scheme: PrecisionName,
    max_loss: float,
    metric: str,
    examples: int,
) -> str:
    """Describe why a model stays in floating point, and what to do.

    Args:
        choice: one that does not fit; None if the metric is not finite in floating point.
        scheme: that the model was to be quantized to.
        max_loss: the largest loss that would have fitted, in points.
        metric: the primary metric.
        examples: number of validation examples.
    """
    where = f"max_loss: the model stays in floating point: its {metric} on {examples:,} validation"
    if choice is None:
        return (
            f"{where} examples is not finite, so no loss can be measured. Check the training and "
            "the labels, or leave out max_loss"
        )
    everything, best = choice.losses[0], min(choice.losses)
    worse = f"{everything:.2f} points worse" if math.isfinite(everything) else "not finite"
    if best < everything:
        worse += f" (with modules given back {best:.2f} points at best)"
    remedy = ", or use QuantizationAwareTraining" if SCHEMES[scheme].dtype is None else ""
    return (
        f"{where} examples would be {worse} in {scheme}, and max_loss allows {max_loss:g}. Raise "
        f"max_loss{remedy}"
    )
