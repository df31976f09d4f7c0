"""Which heads, neurons and layers are left, read off the manifest."""

from torch import nn

from lightning_compress.models.families import UnitKind
from lightning_compress.models.manifest import (
    HEADS_EDIT,
    LAYERS_EDIT,
    NEURONS_EDIT,
    SUBSTITUTION_EDIT,
    manifest_of,
)
from lightning_compress.models.structure import units_of

_EDITS: dict[UnitKind, str] = {"heads": HEADS_EDIT, "neurons": NEURONS_EDIT}


def surviving_units(model: nn.Module, kind: UnitKind) -> list[list[int] | None]:
    """For every layer of the dense model, those of its units that are left, by its own count.

    None for a layer that was removed. Of a model with compact blocks: of the blocks that it had
    when they took the place of layers, narrow ones included.

    Raises:
        InputError: the model is of no known family.
    """
    left: list[list[int] | None] = [list(range(one.count)) for one in units_of(model, kind)]
    for edit in reversed(manifest_of(model)):
        if edit["edit"] == SUBSTITUTION_EDIT:
            break
        if edit["edit"] == LAYERS_EDIT:
            # Ascending, so each finds its old place.
            for block in edit["blocks"] if "blocks" in edit else edit["layers"]:
                left.insert(block, None)
        elif edit["edit"] == _EDITS[kind]:
            for layer, gone in edit["layers"].items():
                there = left[int(layer)]
                left[int(layer)] = None if there is None else _before(there, gone)
    return left


def _before(positions: list[int], gone: list[int]) -> list[int]:
    """Positions of the same units before others, at the ascending positions ``gone``, went."""
    for place in gone:
        positions = [position + (position >= place) for position in positions]
    return positions
