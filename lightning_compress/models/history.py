"""Which of the dense model's heads, neurons and layers are left, read off the manifest."""

from torch import nn

from lightning_compress.models.manifest import manifest_of
from lightning_compress.models.structure import UnitKind, units_of
from lightning_compress.models.surgery import HEADS_EDIT, LAYERS_EDIT, NEURONS_EDIT

_EDITS: dict[UnitKind, str] = {"heads": HEADS_EDIT, "neurons": NEURONS_EDIT}


def units_left(model: nn.Module, kind: UnitKind) -> list[list[int] | None]:
    """For every layer of the dense model, those of its units that are left, by its own count.

    None for a layer that was removed.

    Raises:
        InputError: the model is of no known family.
    """
    left: list[list[int] | None] = [list(range(one.count)) for one in units_of(model, kind)]
    for edit in reversed(manifest_of(model)):
        if edit["edit"] == LAYERS_EDIT:
            for layer in edit["layers"]:  # ascending, so each finds its old place
                left.insert(layer, None)
        elif edit["edit"] == _EDITS[kind]:
            for layer, gone in edit["layers"].items():
                left[int(layer)] = _before(left[int(layer)] or [], gone)
    return left


def _before(positions: list[int], gone: list[int]) -> list[int]:
    """Positions of the same units before others, at the ascending positions ``gone``, went."""
    for place in gone:
        positions = [position + (position >= place) for position in positions]
    return positions
