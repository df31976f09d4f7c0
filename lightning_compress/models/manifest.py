"""The manifest: the list of edits that made a compressed model out of a dense one.

An edit is plain data with an ``edit`` key that names its kind. The manifest travels with the
model object, so it is there wherever the model is, but never in ``state_dict``.
"""

from typing import Any

from torch import nn

from lightning_compress.errors import InputError

Edit = dict[str, Any]


_ATTRIBUTE = "_lightning_compress_manifest"


def manifest_of(model: nn.Module) -> list[Edit]:
    """The edits made to ``model`` so far, first to last; empty for a dense model."""
    edits: list[Edit] = list(getattr(model, _ATTRIBUTE, []))
    return edits


def set_manifest_(model: nn.Module, edits: list[Edit]) -> None:
    """Replace the edits recorded on ``model``."""
    object.__setattr__(model, _ATTRIBUTE, list(edits))


QUANTIZATION_EDIT = "quantize"


PREPARATION_EDIT = "prepare_quantization"


def require_float(model: nn.Module, remedy: str, *, prepared: bool = False) -> None:
    """See that a model is not quantized, nor prepared for it, which may be allowed.

    Raises:
        InputError: it is.
    """
    for edit in manifest_of(model):
        if edit["edit"] == QUANTIZATION_EDIT:
            raise InputError(f"{type(model).__name__} is quantized, to {edit['scheme']}: {remedy}")
        if edit["edit"] == PREPARATION_EDIT and not prepared:
            raise InputError(
                f"{type(model).__name__} is being trained to be quantized, to {edit['scheme']}: "
                "convert it first"
            )
