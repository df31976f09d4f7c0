"""Masks on weights: which entries are pruned to zero.

Masks live beside the model (never in ``state_dict``) and are recorded as one edit in its manifest.
"""

import numpy as np
import torch
from torch import Tensor, nn

from lightning_compress.errors import InputError
from lightning_compress.models.manifest import manifest_of, set_manifest_

MASK_EDIT = "mask_weights"
_ATTRIBUTE = "_lightning_compress_masks"


def masks_of(model: nn.Module) -> dict[str, Tensor]:
    """Boolean masks by parameter name, True where a weight is kept; empty without masks."""
    masks: dict[str, Tensor] = getattr(model, _ATTRIBUTE, {})
    return masks


@torch.no_grad()
def set_masks_(model: nn.Module, masks: dict[str, Tensor]) -> None:
    """Zero the pruned weights in place, remember the masks and record the edit.

    Args:
        model: any module.
        masks: boolean, by parameter name relative to ``model``, each shaped like its parameter;
            True is kept. They replace the masks set before.

    Raises:
        InputError: a name or a shape does not fit the model.
    """
    parameters = dict(model.named_parameters())
    for name, mask in masks.items():
        if name not in parameters or parameters[name].shape != mask.shape:
            raise InputError(
                f"the mask {name!r} of shape {tuple(mask.shape)} fits no parameter of "
                f"{type(model).__name__}: the masks belong to another model"
            )
    object.__setattr__(model, _ATTRIBUTE, dict(masks))
    apply_masks_(model)
    edit = {
        "edit": MASK_EDIT,
        "weights": {
            name: {"pruned": mask.numel() - int(mask.sum()), "of": mask.numel()}
            for name, mask in masks.items()
        },
    }
    others = [other for other in manifest_of(model) if other["edit"] != MASK_EDIT]
    set_manifest_(model, [*others, edit])


@torch.no_grad()
def apply_masks_(model: nn.Module) -> None:
    """Make every pruned weight exactly zero again, whatever has happened to it."""
    masks = masks_of(model)
    if not masks:
        return
    parameters = dict(model.named_parameters())
    for name, mask in masks.items():
        weight = parameters[name]
        if mask.device != weight.device:
            mask = masks[name] = mask.to(weight.device)
        # Not a product: zero times infinity or a negative number would not be plain zero.
        weight.masked_fill_(~mask, 0.0)


def pack_mask(mask: Tensor) -> Tensor:
    """Eight entries a byte: a boolean mask of any shape to a flat uint8 tensor on the CPU."""
    return torch.from_numpy(np.packbits(mask.cpu().numpy().reshape(-1)))


def unpack_mask(packed: Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor:
    """The boolean mask of ``shape`` that :func:`pack_mask` packed."""
    count = int(np.prod(shape))
    bits = np.unpackbits(packed.cpu().numpy(), count=count).astype(bool)
    return torch.from_numpy(bits).reshape(shape)
