"""Which layers are substituted."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from torch import nn

from lightning_compress.errors import InputError
from lightning_compress.models.calibration import Calibration, divergence_from
from lightning_compress.models.layers import skipped
from lightning_compress.models.structure import structure_of

Selection = Literal["divergence", "even"]


def choose_groups(
    model: nn.Module,
    calibration: Calibration,
    *,
    groups: int,
    size: int,
    by: Selection,
    keep_ends: bool,
) -> list[list[int]]:
    """Choose groups of neighbouring layers.

    By ``divergence`` the group without which the predictions change least comes first, then the
    next one given that it is gone, and so on. (The bachelor thesis behind
    https://github.com/Malthehave/Bachelor-Thesis-2024 learned weights of the layers' outputs; its
    order was no better than a random one.)

    Args:
        model: a transformer of a known family.
        calibration: the examples; their labels are not used.
        groups: how many.
        size: layers of each.
        by: ``divergence``, or ``even``: spread evenly.
        keep_ends: leave the first and the last layer.

    Returns:
        Groups of layers, first to last.

    Raises:
        InputError: there are not so many layers to choose from.
    """
    layers = len(structure_of(model).layers)
    low, high = (1, layers - 1) if keep_ends else (0, layers)
    check_groups(layers, groups=groups, size=size, keep_ends=keep_ends)
    if by == "even":
        starts = (
            np.linspace(low, high - size, groups).round()
            if groups > 1
            else [(low + high - size) // 2]
        )
        return _apart([int(start) for start in starts], size, high)
    whole = [calibration.logits(batch) for batch in calibration.batches]
    chosen: list[list[int]] = []
    for _ in range(groups):
        gone = [layer for group in chosen for layer in group]
        free = [
            group
            for group in (list(range(start, start + size)) for start in range(low, high - size + 1))
            if not set(group) & set(gone) and _leaves_room(chosen, group, groups, low, high)
        ]
        costs = []
        for group in free:
            with skipped(model, [*gone, *group]):
                costs.append(divergence_from(whole, calibration))
        chosen.append(free[int(np.argmin(costs))])
    return sorted(chosen)


def check_groups(layers: int, *, groups: int, size: int, keep_ends: bool) -> None:
    """See that there are enough layers.

    Raises:
        InputError: there are not.
    """
    free = layers - 2 if keep_ends else layers
    if groups * size == layers and not keep_ends:
        raise InputError(
            f"count: {groups} groups of {size} are all {layers} layers, which leaves no choice: "
            "choose fewer, or name them in groups"
        )
    if min(groups, size) < 1 or groups * size > free:
        kept = ", of which the first and the last are kept (keep_ends)" if keep_ends else ""
        raise InputError(
            f"count: {groups} groups of {size} cannot be chosen from {layers} layers{kept}"
        )


def _apart(starts: Sequence[int], size: int, high: int) -> list[list[int]]:
    """Groups at these starts, pushed on where rounding let them overlap."""
    found: list[list[int]] = []
    for place, start in enumerate(starts):
        earliest = found[-1][-1] + 1 if found else start
        latest = high - size * (len(starts) - place)
        start = min(max(start, earliest), latest)
        found.append(list(range(start, start + size)))
    return found


def _leaves_room(
    chosen: Sequence[Sequence[int]], group: Sequence[int], groups: int, low: int, high: int
) -> bool:
    """Whether the groups that are still to come fit in between."""
    taken = {layer for one in (*chosen, group) for layer in one}
    room = run = 0
    for layer in range(low, high + 1):
        if layer < high and layer not in taken:
            run += 1
            continue
        room += run // len(group)
        run = 0
    return room >= groups - len(chosen) - 1
