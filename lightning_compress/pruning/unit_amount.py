"""How much of the heads and neurons goes, and what one of them costs."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import nn

from lightning_compress.errors import InputError
from lightning_compress.models.structure import Units
from lightning_compress.pruning.unit_weights import macs_per_pair, macs_per_token


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
