"""The manifest of edits that made a compressed model out of a dense one, and what restores them.

The manifest is a log for people and for the report: each edit is plain data whose ``edit`` names
its kind. A model is not rebuilt by replaying it, but from its compression state: for every part of
a model that edits change, a :class:`StatePart` captures plain data and restores it.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from lightning_compress.errors import InputError
from lightning_compress.models.save_hook import follow_save_pretrained

Edit = dict[str, Any]

MASK_EDIT = "mask_weights"
HEADS_EDIT, NEURONS_EDIT, LAYERS_EDIT = "remove_heads", "remove_neurons", "remove_layers"
SUBSTITUTION_EDIT = "substitute_layers"
QUANTIZATION_EDIT, PREPARATION_EDIT = "quantize", "prepare_quantization"

COMPRESSION = "compression"
"""Key of the compression state in checkpoints and in ``config.json``."""

_BEYOND_CONFIG = {HEADS_EDIT, NEURONS_EDIT, SUBSTITUTION_EDIT}
_ATTRIBUTE = "_lightning_compress_manifest"


@dataclass(frozen=True)
class StatePart:
    """One part of the compression state of a model; defined beside the edit that changes it.

    Args:
        key: of the part in the state.
        capture: the part of a model, as plain data.
        restore_: gives a freshly built dense model that part, in place; weights may be unset.
        shape: restored only if an edit has changed the shape of one of the two models: otherwise
            a difference means that the state belongs to another model.
    """

    key: str
    capture: Callable[[nn.Module], Any]
    restore_: Callable[[nn.Module, Any], None]
    shape: bool = False


def manifest_of(model: nn.Module) -> list[Edit]:
    """The edits made to ``model`` so far, first to last; empty for a dense model."""
    edits: list[Edit] = list(getattr(model, _ATTRIBUTE, []))
    return edits


def set_manifest_(model: nn.Module, edits: list[Edit]) -> None:
    """Replace the edits recorded on ``model`` and on the Hugging Face models inside it.

    Raises:
        InputError: the model is a compressed one that transformers loaded: its edits are unknown.
    """
    from transformers import PreTrainedModel

    if isinstance(model, PreTrainedModel) and vars(model.config).pop(COMPRESSION, {}).get("edits"):
        raise InputError(
            f"{type(model).__name__} is a compressed model that transformers loaded: load it with "
            "load_compressed to edit it"
        )
    follow_save_pretrained()
    # Not through nn.Module, which would look for parameters in it. On the model itself, so that the
    # manifest goes wherever the model goes, copies and pickles included, but never in state_dict.
    object.__setattr__(model, _ATTRIBUTE, list(edits))
    for part in model.modules():
        if part is not model and isinstance(part, PreTrainedModel):
            object.__setattr__(part, _ATTRIBUTE, edits_of_part(edits))


def edits_of_part(edits: Iterable[Edit]) -> list[Edit]:
    """The edits of a model as they are recorded on a model inside it, which has no masks."""
    return [edit for edit in edits if edit["edit"] != MASK_EDIT]


EDITS = StatePart("edits", manifest_of, set_manifest_)


def edits_of(model: nn.Module, kind: str) -> list[Edit]:
    """The edits of one kind made to ``model``, first to last."""
    return [edit for edit in manifest_of(model) if edit["edit"] == kind]


def beyond_config(edits: Iterable[Edit]) -> bool:
    """Whether edits give layers shapes that a Hugging Face configuration cannot express."""
    return any(edit["edit"] in _BEYOND_CONFIG for edit in edits)


def change_shape(edits: Iterable[Edit]) -> bool:
    """Whether edits change the number or the shape of layers."""
    return any(edit["edit"] in {*_BEYOND_CONFIG, LAYERS_EDIT} for edit in edits)


def require_float(model: nn.Module, remedy: str, *, prepared: bool = False) -> None:
    """Require that a model is not quantized.

    Args:
        model: any model.
        remedy: end of the error message.
        prepared: allow fake quantization.

    Raises:
        InputError: the model is quantized, or is being trained with fake quantization.
    """
    for edit in edits_of(model, QUANTIZATION_EDIT):
        raise InputError(f"{type(model).__name__} is quantized, to {edit['scheme']}: {remedy}")
    for edit in () if prepared else edits_of(model, PREPARATION_EDIT):
        raise InputError(
            f"{type(model).__name__} is being trained to be quantized, to {edit['scheme']}: "
            "convert it first"
        )
