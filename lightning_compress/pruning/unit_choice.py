"""Which heads and neurons go, given their scores and how much may stay."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from lightning_compress.errors import InputError
from lightning_compress.models.structure import UnitKind, Units
from lightning_compress.pruning.unit_amount import total_cost


@dataclass(frozen=True)
class Limits:
    """What a layer keeps of one kind of unit: at least ``minimum``, in multiples of ``multiple``.

    A layer whose number is no multiple to begin with is brought to one by the first that go.

    Raises:
        InputError: one of them is less than 1.
    """

    minimum: int = 1
    multiple: int = 1

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise InputError(f"{name} must be at least 1, not {value}")


@dataclass(frozen=True)
class _Chunk:
    """Units of one layer that go together, after those of the chunks before."""

    price: float  # score lost for each unit of cost saved
    saved: float
    units: Units
    chosen: list[int]


def choose_units(
    units: Sequence[Units],
    scores: Mapping[str, Tensor],
    costs: Mapping[str, float],
    budget: float,
    limits: Mapping[UnitKind, Limits],
) -> dict[UnitKind, dict[int, list[int]]]:
    """Give up the units with the lowest score for what they cost, until the rest is in the budget.

    Args:
        units: heads, neurons or both, of all layers.
        scores: [U] by name of the projection (``Units.output``); higher is more important. Those
            of heads and neurons have to be comparable if both are given.
        costs: of one unit, by the same names; what costs nothing stays.
        budget: what all units may cost in the end.
        limits: for each kind.

    Returns:
        Units to remove, by layer, of each kind; empty if all is in the budget already.

    Raises:
        InputError: the limits keep more than the budget allows, or a score is not a number.
    """
    for one in units:
        if not scores[one.output].isfinite().all():
            raise InputError(
                f"the scores of {one.kind} in layer {one.layer} are not finite: the training has "
                "diverged; lower the learning rate or clip gradients"
            )
    spent = total_cost(units, costs)
    chunks = [chunk for one in units for chunk in _chunks(one, scores, costs, limits)]
    gone: dict[UnitKind, dict[int, list[int]]] = {one.kind: {} for one in units}
    for chunk in sorted(chunks, key=lambda chunk: chunk.price):
        # Costs are sums of floats; a budget met up to rounding is met.
        if spent <= budget * (1 + 1e-9):
            break
        spent -= chunk.saved
        gone[chunk.units.kind].setdefault(chunk.units.layer, []).extend(chunk.chosen)
    if spent > budget * (1 + 1e-9):
        total = total_cost(units, costs)
        raise InputError(
            f"the budget cannot be met: what every layer keeps at least costs {spent / total:.1%} "
            f"of what there is, more than the {budget / total:.1%} asked for; lower the minimum, "
            "or ask for less"
        )
    return gone


def _chunks(
    one: Units,
    scores: Mapping[str, Tensor],
    costs: Mapping[str, float],
    limits: Mapping[UnitKind, Limits],
) -> list[_Chunk]:
    """The units of a layer that may go, cheapest first, in the portions in which they go."""
    limit = limits[one.kind]
    values, order = scores[one.output].sort(stable=True)
    first = one.count % limit.multiple or limit.multiple
    ends = [0, *range(first, one.count - limit.minimum + 1, limit.multiple)]
    chunks: list[_Chunk] = []
    if costs[one.output] == 0:
        return chunks
    for start, end in pairwise(ends):
        saved = costs[one.output] * (end - start)
        price = float(values[start:end].sum()) / saved
        # Rounding must not let a chunk overtake the one before it.
        price = max(price, chunks[-1].price) if chunks else price
        chunks.append(_Chunk(price, saved, one, order[start:end].tolist()))
    return chunks
