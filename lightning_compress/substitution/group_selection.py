"""Selection of the groups of layers to substitute.

The greedy selection by divergence is this library's own. (The bachelor thesis behind
https://github.com/Malthehave/Bachelor-Thesis-2024, 2024, learned weights of the layers' outputs;
their order was no better than a random one.)
"""

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
    num_groups: int,
    layers_per_group: int,
    selection: Selection,
    keep_ends: bool,
) -> list[list[int]]:
    """Choose groups of consecutive layers.

    Args:
        model: a transformer of a known family.
        calibration: the examples; labels are not used.
        num_groups: groups to choose.
        layers_per_group: layers of each group.
        selection: ``divergence``: greedily, each time the group whose removal, in addition to the
            groups chosen before, changes the predictions least (KL divergence from the dense
            model); ``even``: evenly spaced.
        keep_ends: never choose the first and the last layer.

    Returns:
        Groups of layers counted from 0, first to last.

    Raises:
        InputError: the model has too few layers.
    """
    layers = len(structure_of(model).layers)
    low, high = (1, layers - 1) if keep_ends else (0, layers)
    check_groups(
        layers, num_groups=num_groups, layers_per_group=layers_per_group, keep_ends=keep_ends
    )
    if selection == "even":
        return _evenly_spaced(num_groups, layers_per_group, low, high)
    dense = [calibration.logits(batch) for batch in calibration.batches]
    chosen: list[list[int]] = []
    for _ in range(num_groups):
        taken = [layer for group in chosen for layer in group]
        candidates = _candidates(chosen, num_groups, layers_per_group, low, high)
        costs = []
        for group in candidates:
            with skipped(model, [*taken, *group]):
                costs.append(divergence_from(dense, calibration))
        chosen.append(candidates[int(np.argmin(costs))])
    return sorted(chosen)


def _candidates(
    chosen: list[list[int]], num_groups: int, layers_per_group: int, low: int, high: int
) -> list[list[int]]:
    """Groups that overlap none of the chosen ones and leave room for all that are still needed."""
    taken = {layer for group in chosen for layer in group}
    groups = (
        list(range(start, start + layers_per_group))
        for start in range(low, high - layers_per_group + 1)
    )
    return [
        group
        for group in groups
        if not set(group) & taken and _leaves_room(chosen, group, num_groups, low, high)
    ]


def check_groups(layers: int, *, num_groups: int, layers_per_group: int, keep_ends: bool) -> None:
    """Check that a model has enough layers for the groups.

    Args:
        layers: of the model.
        num_groups: groups to choose.
        layers_per_group: layers of each group.
        keep_ends: never choose the first and the last layer.

    Raises:
        InputError: it has too few, or the groups would be all of them.
    """
    available = layers - 2 if keep_ends else layers
    what = f"{num_groups} groups of {layers_per_group}"
    if num_groups * layers_per_group == layers and not keep_ends:
        raise InputError(
            f"num_groups: {what} are all {layers} layers, which leaves no choice: choose fewer, or "
            "name them in groups"
        )
    if min(num_groups, layers_per_group) < 1 or num_groups * layers_per_group > available:
        kept = ", of which the first and the last are kept (keep_ends)" if keep_ends else ""
        raise InputError(f"num_groups: {what} cannot be chosen from {layers} layers{kept}")


def _evenly_spaced(num_groups: int, size: int, low: int, high: int) -> list[list[int]]:
    """Groups evenly spaced in [low, high), moved apart where rounding lets them overlap."""
    if num_groups == 1:
        starts = [(low + high - size) // 2]
    else:
        starts = np.linspace(low, high - size, num_groups).round().astype(int).tolist()
    groups: list[list[int]] = []
    for place, start in enumerate(starts):
        earliest = groups[-1][-1] + 1 if groups else start
        latest = high - size * (len(starts) - place)
        start = min(max(start, earliest), latest)
        groups.append(list(range(start, start + size)))
    return groups


def _leaves_room(
    chosen: Sequence[Sequence[int]], group: Sequence[int], num_groups: int, low: int, high: int
) -> bool:
    """Whether the remaining groups still fit once ``group`` is chosen."""
    taken = {layer for one in (*chosen, group) for layer in one}
    room = run = 0
    for layer in range(low, high + 1):
        if layer < high and layer not in taken:
            run += 1
            continue
        room += run // len(group)
        run = 0
    return room >= num_groups - len(chosen) - 1
