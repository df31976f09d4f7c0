"""The heads, neurons and layers of the dense model that survive, read from the manifest."""

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
    """For every layer of the dense model, the indices of its surviving units.

    None for a layer that was removed. In a model with compact blocks, the dense model is the
    one right after the last substitution, narrow blocks included.

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
            for layer, removed in edit["layers"].items():
                now = left[int(layer)]
                left[int(layer)] = None if now is None else _before(now, removed)
    return left


def _before(positions: list[int], removed: list[int]) -> list[int]:
    """Indices of the same units before those at the ascending indices ``removed`` were removed."""
    for place in removed:
        positions = [position + (position >= place) for position in positions]
    return positions
