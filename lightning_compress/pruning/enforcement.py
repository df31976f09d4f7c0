"""Pruned weights get no gradient, leave no trace in the optimizer, and are the same everywhere."""

import hashlib
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_compress.models import masks_of
from lightning_compress.models.masks import pack_mask, zero_pruned_


@torch.no_grad()
def zero_gradients_(model: nn.Module) -> None:
    """Zero the gradients of pruned weights, so that they count neither in norms nor in moments."""
    masks = masks_of(model)
    for name, parameter in model.named_parameters() if masks else ():
        if name in masks and parameter.grad is not None:
            zero_pruned_(parameter.grad, masks[name])


@torch.no_grad()
def forget_pruned_(model: nn.Module, optimizers: Iterable[Optimizer]) -> None:
    """Zero what optimizers remember of pruned weights: momentum and other state by weight."""
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
