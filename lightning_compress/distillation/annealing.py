"""Values that are annealed over a run: loss weights and temperatures."""

import math

from lightning_compress.errors import InputError

Annealed = float | tuple[float, float]
"""A constant, or the values at the first and the last step with linear interpolation between."""


def annealed_at(value: Annealed, progress: float) -> float:
    """The value at ``progress``, the fraction of the run that is done, in [0, 1]."""
    if isinstance(value, int | float):
        return float(value)
    first, last = value
    return first + (last - first) * progress


def check_annealed(name: str, value: Annealed, *, zero_at_one_end: bool) -> None:
    """Require that a value is positive throughout the run.

    Args:
        name: of the option, for the error.
        value: the constant or the two ends.
        zero_at_one_end: allow one of the two ends to be zero.

    Raises:
        InputError: the value is negative, zero throughout, not finite, or not one or two numbers.
    """
    ends = (value, value) if isinstance(value, int | float) else tuple(value)
    if len(ends) != 2:
        raise InputError(f"{name} is one number or two, at the first and the last step: {value}")
    numbers = all(math.isfinite(end) for end in ends)
    if not numbers or min(ends) < 0 or max(ends) == 0 or (min(ends) == 0 and not zero_at_one_end):
        raise InputError(f"{name} has to be positive, not {value}")
