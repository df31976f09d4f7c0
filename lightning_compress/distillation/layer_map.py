"""Which layer of the student learns from which layer of the teacher."""

from typing import Literal

from lightning_compress.errors import InputError

LayerMap = Literal["uniform", "last"] | dict[int, int]
"""``uniform``: all layers of the student, each from the one that ends as far up in the teacher;
``last``: the last from the last; or the teacher's layer by the student's, counted from 0."""


def layer_pairs(layers: LayerMap, student: int, teacher: int) -> list[tuple[int, int]]:
    """Pairs of a student's and a teacher's layer, counted from 0.

    Args:
        layers: the map.
        student: how many layers the student has.
        teacher: how many the teacher has.

    Raises:
        InputError: the map names a layer that is not there, or none.
    """
    if layers == "last":
        return [(student - 1, teacher - 1)]
    if layers == "uniform":
        return [
            (layer, max(1, round((layer + 1) * teacher / student)) - 1) for layer in range(student)
        ]
    if not layers:
        raise InputError("losses: layers maps no layer; name some, or say uniform or last")
    for of, have, counts in (("student", student, layers), ("teacher", teacher, layers.values())):
        missing = sorted(layer for layer in counts if not 0 <= layer < have)
        if missing:
            raise InputError(
                f"losses: layers names layer {missing[0]} of the {of}, which has layers 0 to "
                f"{have - 1}"
            )
    return sorted(layers.items())
