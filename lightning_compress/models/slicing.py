"""Slicing parameters, and with them all that is shaped like them: masks and optimizer moments."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_compress.models.masks import masks_of, set_masks_


@dataclass(frozen=True)
class Cut:
    """Keep the entries ``kept`` (positions, ascending) of a parameter along ``dim``."""

    parameter: str
    dim: int
    kept: Tensor


@torch.no_grad()
def cut_(model: nn.Module, cuts: Sequence[Cut], optimizers: Iterable[Optimizer] = ()) -> None:
    """Make the cuts, in place; a parameter that is cut becomes a new, smaller one.

    Args:
        model: any module.
        cuts: by parameter name, relative to ``model``; the same parameter may be cut along both
            dimensions.
        optimizers: that train the model: their moments are cut alike.
    """
    masks = dict(masks_of(model))
    for cut in cuts:
        owner, _, leaf = cut.parameter.rpartition(".")
        module = model.get_submodule(owner)
        old: nn.Parameter = getattr(module, leaf)
        new = nn.Parameter(_kept(old.detach(), cut), requires_grad=old.requires_grad)
        setattr(module, leaf, new)
        for optimizer in optimizers:
            _replace_(optimizer, old, new, cut)
        if cut.parameter in masks:
            masks[cut.parameter] = _kept(masks[cut.parameter], cut)
    if masks:
        set_masks_(model, masks)


def forget_(optimizer: Optimizer, parameters: Iterable[nn.Parameter]) -> None:
    """Drop parameters and their moments from an optimizer."""
    gone = {id(parameter) for parameter in parameters}
    for group in optimizer.param_groups:
        group["params"] = [weight for weight in group["params"] if id(weight) not in gone]
    for parameter in [weight for weight in optimizer.state if id(weight) in gone]:
        del optimizer.state[parameter]


def _kept(tensor: Tensor, cut: Cut) -> Tensor:
    return tensor.index_select(cut.dim, cut.kept.to(tensor.device))


def _replace_(optimizer: Optimizer, old: nn.Parameter, new: nn.Parameter, cut: Cut) -> None:
    for group in optimizer.param_groups:
        group["params"] = [new if weight is old else weight for weight in group["params"]]
    if old in optimizer.state:
        optimizer.state[new] = {
            name: _kept(value, cut)
            if isinstance(value, Tensor) and value.shape == old.shape
            else value
            for name, value in optimizer.state.pop(old).items()
        }
