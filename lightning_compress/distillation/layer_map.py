"""Which layer of the student learns from which layer of the teacher."""

from typing import Literal

from lightning_compress.errors import InputError

LayerMap = Literal["uniform", "last"] | dict[int, int]
"""``uniform``: every student layer from the teacher layer at the same relative depth; ``last``: the
last from the last; or ``{student layer: teacher layer}``, counted from 0."""


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
