"""Masks on weights: which entries are pruned to zero.

Masks are an attribute of the model, not part of ``state_dict``, and one edit in its manifest.
The functions here keep pruned weights, their gradients and their optimizer state at zero.
"""

import hashlib
import warnings
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_compress.errors import InputError
from lightning_compress.models.manifest import (
    MASK_EDIT,
    StatePart,
    edits_of,
    manifest_of,
    set_manifest_,
)

_ATTRIBUTE = "_lightning_compress_masks"


_PIECE = 1 << 18  # entries multiplied at a time


_SAME_SIZE = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def masks_of(model: nn.Module) -> dict[str, Tensor]:
    """Boolean masks by parameter name, True where a weight is kept; empty without masks."""
    masks: dict[str, Tensor] = getattr(model, _ATTRIBUTE, {})
    return masks


@torch.no_grad()
def set_masks_(model: nn.Module, masks: dict[str, Tensor], *, technique: str | None = None) -> None:
    """Zero the pruned weights in place, remember the masks and record the edit.

    Args:
        model: any module.
        masks: boolean, by parameter name relative to ``model``, each shaped like its parameter;
            True is kept. They replace the masks set before.
        technique: name of the method that chose the masks, for the report. None keeps the name
            recorded before.

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
    before = edits_of(model, MASK_EDIT)
    edit = {
        "edit": MASK_EDIT,
        "technique": technique or (before[0]["technique"] if before else MASK_EDIT),
        "weights": {
            name: {"pruned": mask.numel() - int(torch.count_nonzero(mask)), "of": mask.numel()}
            for name, mask in masks.items()
        },
    }
    others = [other for other in manifest_of(model) if other["edit"] != MASK_EDIT]
    set_manifest_(model, [*others, edit] if masks else others)


@torch.no_grad()
def apply_masks_(model: nn.Module) -> None:
    """Set every pruned weight to exactly zero."""
    masks = masks_of(model)
    if not masks:
        return
    parameters = dict(model.named_parameters())
    for name, mask in masks.items():
        weight = parameters[name]
        if mask.device != weight.device:
            mask = masks[name] = mask.to(weight.device)
        zero_pruned_(weight, mask)


@torch.no_grad()
def held_masks_(model: nn.Module) -> dict[str, Tensor]:
    """The masks whose pruned weights are zero; drops those of weights trained on without them.

    Warns of the dropped ones.
    """
    masks, parameters = masks_of(model), dict(model.named_parameters())
    held = {
        name: mask
        for name, mask in masks.items()
        if name not in parameters or not parameters[name][~mask.to(parameters[name].device)].any()
    }
    if len(held) < len(masks):
        warnings.warn(
            f"pruned weights of {len(masks) - len(held)} of {len(masks)} layers are not zero any "
            "more: they were trained without their masks, which are dropped. To keep them zero, "
            "train with a FineTuningModule, or with IterativeMagnitudePruning in the callbacks",
            stacklevel=2,
        )
        set_masks_(model, held)
    return dict(held)


def zero_pruned_(tensor: Tensor, mask: Tensor) -> None:
    """Set a floating point tensor to plain zero where ``mask`` is False, in place.

    It multiplies the bits, read as integers: as quick as arithmetic, and, unlike a product of
    floats, plain zero also where there was infinity, NaN or a negative number.
    """
    bits = tensor.view(_SAME_SIZE[tensor.element_size()])
    if mask.dim() == 0:
        bits, mask = bits.view(1), mask.view(1)
    # Piece by piece, because torch makes an integer copy of what it multiplies of the mask.
    rows = max(1, _PIECE * len(mask) // max(1, mask.numel()))
    for piece, kept in zip(torch.split(bits, rows), torch.split(mask, rows), strict=True):
        piece.mul_(kept)


def pack_mask(mask: Tensor) -> Tensor:
    """Eight entries a byte: a boolean mask of any shape to a flat uint8 tensor on the CPU."""
    return torch.from_numpy(np.packbits(mask.cpu().numpy().reshape(-1)))


def unpack_mask(packed: Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor:
    """The boolean mask of ``shape`` that :func:`pack_mask` packed."""
    count = int(np.prod(shape))
    bits = np.unpackbits(packed.cpu().numpy(), count=count).astype(bool)
    return torch.from_numpy(bits).reshape(shape)


@torch.no_grad()
def zero_gradients_(model: nn.Module) -> None:
    """Zero the gradients of pruned weights, so that they count neither in norms nor in moments."""
    masks = masks_of(model)
    for name, parameter in model.named_parameters() if masks else ():
        if name in masks and parameter.grad is not None:
            zero_pruned_(parameter.grad, masks[name])


@torch.no_grad()
def forget_pruned_(model: nn.Module, optimizers: Iterable[Optimizer]) -> None:
    """Zero the optimizers' state of pruned weights: momentum and other state by weight."""
    parameters = dict(model.named_parameters())
    states = [optimizer.state for optimizer in optimizers]
    for name, mask in masks_of(model).items():
        parameter = parameters[name]
        for value in (value for state in states for value in state.get(parameter, {}).values()):
            if isinstance(value, Tensor) and value.shape == mask.shape:
                zero_pruned_(value, mask)


def masks_digest(masks: Mapping[str, Tensor]) -> int:
    """A number of 63 bits that tells different masks apart, the same in every process."""
    digest = hashlib.blake2b(digest_size=8)
    for name in sorted(masks):
        digest.update(name.encode())
        digest.update(pack_mask(masks[name]).numpy().tobytes())
    return int.from_bytes(digest.digest(), "big") >> 1


def pruned_of(
    masks: Mapping[str, Tensor], weights: Mapping[str, Tensor]
) -> dict[str, tuple[int, int]]:
    """How many entries of each of ``weights`` are pruned, and of how many."""
    return {
        name: (
            weight.numel() - int(torch.count_nonzero(masks[name])) if name in masks else 0,
            weight.numel(),
        )
        for name, weight in weights.items()
    }


def renamed_masks(
    masks: Mapping[str, Tensor], new_names: Mapping[str, str], blocks: Sequence[str]
) -> dict[str, Tensor]:
    """Masks by the new names of their parameters, without those of removed layers.

    Args:
        masks: by name of the parameter.
        new_names: of the layers that stay, by their old ones.
        blocks: the old names of all layers.
    """
    renamed = {}
    for name, mask in masks.items():
        block = next((block for block in blocks if name.startswith(f"{block}.")), None)
        if block is None:
            renamed[name] = mask
        elif block in new_names:
            renamed[new_names[block] + name.removeprefix(block)] = mask
    return renamed


def _capture(model: nn.Module) -> dict[str, Tensor]:
    return {name: pack_mask(mask) for name, mask in held_masks_(model).items()}


def _restore_(model: nn.Module, packed: Mapping[str, Tensor]) -> None:
    shapes = {name: weight.shape for name, weight in model.named_parameters()}
    missing = sorted(set(packed) - set(shapes))
    if missing:
        raise InputError(f"the masks belong to another model: it has no weight {missing[0]!r}")
    if packed or masks_of(model):
        set_masks_(model, {name: unpack_mask(mask, shapes[name]) for name, mask in packed.items()})


MASKS = StatePart("masks", _capture, _restore_)
