"""Options that losses share: values annealed over the run, and maps of layers."""

import math
from typing import Literal

from lightning_compress.errors import InputError, require_choice

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


LayerMap = Literal["uniform", "last"] | dict[int, int]
"""``uniform``: every student layer from the teacher layer at the same relative depth; ``last``: the
last from the last; or ``{student layer: teacher layer}``, counted from 0."""


def check_layers(name: str, layers: LayerMap) -> None:
    """Require that a map of layers given by its name exists.

    Raises:
        InputError: it does not.
    """
    if isinstance(layers, str):
        require_choice(name, layers, ("uniform", "last"))


def layer_pairs(layers: LayerMap, student: int, teacher: int) -> list[tuple[int, int]]:
    """Pairs of a student layer and a teacher layer, counted from 0.

    Args:
        layers: the map.
        student: number of layers of the student.
        teacher: number of layers of the teacher.

    Raises:
        InputError: the map is empty or names a layer that does not exist.
    """
    if layers == "last":
        return [(student - 1, teacher - 1)]
    if layers == "uniform":
        return [
            (layer, max(1, round((layer + 1) * teacher / student)) - 1) for layer in range(student)
        ]
    if not layers:
        raise InputError("losses: layers maps no layer; name some, or use uniform or last")
    for of, have, counts in (("student", student, layers), ("teacher", teacher, layers.values())):
        missing = sorted(layer for layer in counts if not 0 <= layer < have)
        if missing:
            raise InputError(
                f"losses: layers names layer {missing[0]} of the {of}, which has layers 0 to "
                f"{have - 1}"
            )
    return sorted(layers.items())
