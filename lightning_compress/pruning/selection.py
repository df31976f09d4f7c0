"""Selection of the heads and neurons to remove, given their importance and a budget.

:func:`select_units` removes the units with the least importance for their cost until the rest
fits the budget. :func:`rearrange` then swaps removed units of a layer for kept ones where two
removed together cost more than each alone.

Source: Kwon et al., "A Fast Post-Training Pruning Framework for Transformers", 2022,
https://arxiv.org/abs/2204.09656, sections 4.1 and 4.2. Here a layer also keeps a minimum and a
multiple of units, and gradients are those of single examples.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from lightning_compress.errors import InputError
from lightning_compress.models.families import UnitKind
from lightning_compress.models.structure import Units, macs_per_pair, macs_per_token


@dataclass(frozen=True)
class Budget:
    """How much of a model's heads and neurons is removed, in exactly one of these measures.

    Args:
        removed_fraction: of the number of units, all layers together, in (0, 1).
        removed_count: number of units, all layers together, at least 1.
        removed_macs_fraction: of the units' multiply-accumulates, in (0, 1): those with their
            weights and, of heads, those between pairs of tokens.
        removed_latency_fraction: of the time spent in the units, in (0, 1). The caller measures
            what each unit costs.

    Raises:
        InputError: a value is out of range.
    """

    removed_fraction: float | None = None
    removed_count: int | None = None
    removed_macs_fraction: float | None = None
    removed_latency_fraction: float | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name != "removed_count" and value is not None and not 0 < value < 1:
                raise InputError(f"{name} is a fraction between 0 and 1, not {value}")
        if self.removed_count is not None and self.removed_count < 1:
            raise InputError(f"removed_count must be at least 1, not {self.removed_count}")

    def costs(self, model: nn.Module, units: Iterable[Units], tokens: float) -> dict[str, float]:
        """Cost of one unit: 1, or its MACs for an example of so many tokens.

        Returns:
            By name of the projection (``Units.output``).
        """
        if self.removed_macs_fraction is None:
            return {one.output: 1.0 for one in units}
        return unit_macs(model, units, tokens)

    def remaining(self, total: float, progress: float) -> float:
        """Cost that may remain of ``total`` after ``progress``, in [0, 1], of the removal."""
        if self.removed_count is not None:
            return total - self.removed_count * progress
        fraction = (
            self.removed_fraction or self.removed_macs_fraction or self.removed_latency_fraction
        )
        return total * (1 - (fraction or 0.0) * progress)


def budget_of(**options: float | None) -> Budget:
    """The budget by exactly one of these options of :class:`Budget`; the others are None.

    Raises:
        InputError: none or several are given, or one is out of range.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if len(given) != 1:
        raise InputError(
            f"give exactly one of {' and '.join(options)}, not " + ("both" if given else "none")
        )
    return Budget(**given)  # type: ignore[arg-type]  # the command line checks that a count is int


def unit_macs(model: nn.Module, units: Iterable[Units], tokens: float) -> dict[str, float]:
    """Multiply-accumulates of one unit for an example of so many tokens.

    Returns:
        By name of the projection (``Units.output``); units of narrow layers cost less.
    """
    return {
        one.output: macs_per_token(model, one) * tokens + macs_per_pair(model, one) * tokens**2
        for one in units
    }


def total_cost(units: Iterable[Units], costs: Mapping[str, float]) -> float:
    """Cost of all units together."""
    return sum(costs[one.output] * one.count for one in units)


@dataclass(frozen=True)
class LayerMinimum:
    """How many units of one kind a layer keeps.

    Args:
        minimum: number of units that every layer keeps, at least 1.
        multiple: the number that a layer keeps is a multiple of this, at least 1. A layer whose
            number is no multiple to begin with is brought to one by the first removal.

    Raises:
        InputError: a value is less than 1.
    """

    minimum: int = 1
    multiple: int = 1

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise InputError(f"{name} must be at least 1, not {value}")


@dataclass(frozen=True)
class _Chunk:
    """Units of one layer that are removed together, after those of the layer's earlier chunks."""

    price: float  # importance lost per cost saved
    saved: float
    units: Units
    selected: list[int]


def select_units(
    units: Sequence[Units],
    scores: Mapping[str, Tensor],
    costs: Mapping[str, float],
    max_cost: float,
    minimums: Mapping[UnitKind, LayerMinimum],
) -> dict[UnitKind, dict[int, list[int]]]:
    """Select the units with the lowest score for their cost until the rest fits the budget.

    Args:
        units: heads, neurons or both, of all layers.
        scores: [U] by name of the projection (``Units.output``); higher is more important. Scores
            of heads and neurons must be comparable if both are given.
        costs: of one unit, by the same names; units that cost nothing are kept.
        max_cost: cost of all kept units together, at most.
        minimums: what every layer keeps, by kind.

    Returns:
        Units to remove, by kind and layer; empty if all units fit already.

    Raises:
        InputError: the minimums cost more than the budget, or a score is not finite.
    """
    _require_finite(units, scores)
    cost = total_cost(units, costs)
    chunks = [chunk for one in units for chunk in _chunks(one, scores, costs, minimums)]
    removed: dict[UnitKind, dict[int, list[int]]] = {one.kind: {} for one in units}
    for chunk in sorted(chunks, key=lambda chunk: chunk.price):
        # Costs are sums of floats: a budget that is met up to rounding is met.
        if cost <= max_cost * (1 + 1e-9):
            break
        cost -= chunk.saved
        removed[chunk.units.kind].setdefault(chunk.units.layer, []).extend(chunk.selected)
    if cost > max_cost * (1 + 1e-9):
        total = total_cost(units, costs)
        raise InputError(
            f"the budget cannot be met: what every layer keeps at least costs {cost / total:.1%} "
            f"of the total, more than the {max_cost / total:.1%} asked for; lower the minimum, "
            "or remove less"
        )
    return removed


def _require_finite(units: Sequence[Units], scores: Mapping[str, Tensor]) -> None:
    for one in units:
        if not scores[one.output].isfinite().all():
            raise InputError(
                f"the scores of {one.kind} in layer {one.layer} are not finite: the training has "
                "diverged; lower the learning rate or clip gradients"
            )


def _chunks(
    one: Units,
    scores: Mapping[str, Tensor],
    costs: Mapping[str, float],
    minimums: Mapping[UnitKind, LayerMinimum],
) -> list[_Chunk]:
    """The units of a layer that may be removed, cheapest first, in multiples."""
    kept = minimums[one.kind]
    values, order = scores[one.output].sort(stable=True)
    first = one.count % kept.multiple or kept.multiple
    ends = [0, *range(first, one.count - kept.minimum + 1, kept.multiple)]
    chunks: list[_Chunk] = []
    if costs[one.output] == 0:
        return chunks
    for start, end in pairwise(ends):
        saved = costs[one.output] * (end - start)
        price = float(values[start:end].sum()) / saved
        # Floating point must not let a chunk overtake the one before it.
        price = max(price, chunks[-1].price) if chunks else price
        chunks.append(_Chunk(price, saved, one, order[start:end].tolist()))
    return chunks


def rearrange(gradients: Tensor, removed: Sequence[int]) -> list[int]:
    """Swap removed and kept units of one layer as long as a swap lowers the loss.

    The loss rises by half of the mean over the examples of the squared sum of the removed units'
    gradients: the Fisher information with its off-diagonal part. Units that do the same are then
    not removed together, units that compensate each other are. Takes the best swap each time.

    Args:
        gradients: [N, U], of each example's loss by the gates of the units.
        removed: the selection to start from.

    Returns:
        As many units as ``removed``, ascending.
    """
    fisher = gradients.double().T @ gradients.double() / len(gradients)
    diagonal = fisher.diagonal()
    out = torch.zeros(len(fisher), dtype=torch.bool, device=fisher.device)
    out[list(removed)] = True
    pull = fisher[:, out].sum(1)  # F · 1(removed)
    for _ in range(len(fisher)):
        inside, outside = out.nonzero().flatten(), (~out).nonzero().flatten()
        if not len(inside) or not len(outside):
            break
        back = diagonal[inside] - 2 * pull[inside]
        away = diagonal[outside] + 2 * pull[outside]
        change = back[:, None] + away - 2 * fisher[inside][:, outside]
        best = int(change.argmin())
        first, second = inside[best // len(outside)], outside[best % len(outside)]
        if change.flatten()[best] >= -1e-12 * diagonal.sum():
            break
        out[first], out[second] = False, True
        pull += fisher[:, second] - fisher[:, first]
    return [int(unit) for unit in out.nonzero().flatten()]
