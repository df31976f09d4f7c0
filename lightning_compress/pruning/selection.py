"""How much of the heads and neurons goes, and what one of them costs.

Which heads and neurons go, given their scores and how much may stay.

Swap units that go for units that stay, where two that go together cost less than each alone.

Source: Kwon et al., "A Fast Post-Training Pruning Framework for Transformers", 2022,
https://arxiv.org/abs/2204.09656, section 4.2.
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
class Amount:
    """How much goes, said in one way.

    Args:
        share: of the number of units, in (0, 1).
        count: of units, of all layers together.
        macs: share of the multiplications that go through the units, in (0, 1): by their weights,
            and, of heads, between pairs of tokens.
        latency: share of the time spent in the units, in (0, 1). What one of them costs has to be
            measured.

    Raises:
        InputError: it is out of range.
    """

    share: float | None = None
    count: int | None = None
    macs: float | None = None
    latency: float | None = None

    def __post_init__(self) -> None:
        for name in ("share", "macs", "latency"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                raise InputError(f"{name} is a fraction between 0 and 1, not {value}")
        if self.count is not None and self.count < 1:
            raise InputError(f"count must be at least 1, not {self.count}")

    def costs(self, model: nn.Module, units: Iterable[Units], tokens: float) -> dict[str, float]:
        """What a unit costs: one, or multiplications for a text of so many tokens.

        By name of the projection (``Units.output``); narrow layers have cheaper units than others.
        """
        if self.macs is None:
            return {one.output: 1.0 for one in units}
        return {
            one.output: macs_per_token(model, one) * tokens + macs_per_pair(model, one) * tokens**2
            for one in units
        }

    def budget(self, whole: float, progress: float) -> float:
        """What may be left of ``whole``, all there was, with ``progress`` of the removal done."""
        if self.count is not None:
            return whole - self.count * progress
        return whole * (1 - (self.share or self.macs or self.latency or 0.0) * progress)


def amount_of(**ways: float | None) -> Amount:
    """The amount, said in one of these ways; the others are None.

    Raises:
        InputError: none or several are given, or one is out of range.
    """
    given = {name: value for name, value in ways.items() if value is not None}
    if len(given) != 1:
        raise InputError(
            f"say how much to remove by one of {' and '.join(ways)}, not by "
            + ("both" if given else "none")
        )
    return Amount(**given)  # type: ignore[arg-type]  # a count is checked by the command line


def total_cost(units: Iterable[Units], costs: Mapping[str, float]) -> float:
    """What units cost together."""
    return sum(costs[one.output] * one.count for one in units)


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


def rearranged(gradients: Tensor, gone: Sequence[int]) -> list[int]:
    """Choose as many units of one layer to lose as little as possible together.

    The loss rises by half of the mean over the examples of the squared sum of the gradients of the
    units that go: the Fisher information with its off-diagonal part, so that units that do the same
    thing do not go together and units that make up for each other do. Swaps the best pair
    until no swap helps.

    Args:
        gradients: [N, U], of each example's loss by the gates of the units.
        gone: where to start from.

    Returns:
        As many units as ``gone``, ascending.
    """
    fisher = gradients.double().T @ gradients.double() / len(gradients)
    diagonal = fisher.diagonal()
    out = torch.zeros(len(fisher), dtype=torch.bool, device=fisher.device)
    out[list(gone)] = True
    pull = fisher[:, out].sum(1)  # F · 1(gone)
    for _ in range(len(fisher)):
        going, staying = out.nonzero().flatten(), (~out).nonzero().flatten()
        if not len(going) or not len(staying):
            break
        back = diagonal[going] - 2 * pull[going]
        away = diagonal[staying] + 2 * pull[staying]
        change = back[:, None] + away - 2 * fisher[going][:, staying]
        best = int(change.argmin())
        first, second = going[best // len(staying)], staying[best % len(staying)]
        if change.flatten()[best] >= -1e-12 * diagonal.sum():
            break
        out[first], out[second] = False, True
        pull += fisher[:, second] - fisher[:, first]
    return [int(unit) for unit in out.nonzero().flatten()]
