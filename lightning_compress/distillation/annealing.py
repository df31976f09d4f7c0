"""Numbers that change over a run: weights and temperatures."""

import math

from lightning_compress.errors import InputError

Ramped = float | tuple[float, float]
"""One number, or two: at the first and at the last step, on a straight line between."""


def at(value: Ramped, progress: float) -> float:
    """The number at ``progress``, a share of the run in [0, 1]."""
    if isinstance(value, int | float):
        return float(value)
    first, last = value
    return first + (last - first) * progress


def check_ramp(name: str, value: Ramped, *, zero_at_one_end: bool) -> None:
    """See that a number is positive all along the run.

    Args:
        name: the option's.
        value: its.
        zero_at_one_end: a ramp may begin or end at zero.

    Raises:
        InputError: it is not.
    """
    ends = (value, value) if isinstance(value, int | float) else tuple(value)
    if len(ends) != 2:
        raise InputError(f"{name} is one number or two, at the first and the last step: {value}")
    numbers = all(math.isfinite(end) for end in ends)
    if not numbers or min(ends) < 0 or max(ends) == 0 or (min(ends) == 0 and not zero_at_one_end):
        raise InputError(f"{name} has to be positive, not {value}")
