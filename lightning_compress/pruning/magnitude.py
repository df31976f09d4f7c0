"""Magnitude pruning: keep the largest weights, to an exact sparsity.

Source: Han et al., "Learning both Weights and Connections for Efficient Neural Networks", 2015,
arXiv:1506.02626.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from lightning_compress.errors import InputError
from lightning_compress.pruning.n_m import NM
from lightning_compress.pruning.threshold import drop_smallest_

Scope = Literal["global", "layer"]


def magnitude_masks(
    weights: Mapping[str, Tensor],
    sparsity: float,
    *,
    masks: Mapping[str, Tensor] | None = None,
    scope: Scope = "global",
    pattern: NM | None = None,
    input_dims: Mapping[str, int] | None = None,
) -> dict[str, Tensor]:
    """Masks that keep the largest weights and prune ``round(sparsity * count)`` of them.

    What ``masks`` has pruned stays pruned and counts, so the result is sparser than asked for
    where they already are. Of equal magnitudes the earlier one is kept.

    Args:
        weights: floating point, any shapes, by name.
        sparsity: fraction of zeros to reach, in [0, 1].
        masks: the masks so far, boolean, True is kept; a name that is missing is dense.
        scope: one threshold over all weights at once, or the same sparsity for each of them.
        pattern: prune only outside the n largest of each group of m. From the sparsity of the
            pattern on everything outside is pruned, so that the pattern holds exactly.
        input_dims: the dimension of the inputs of each weight, for ``pattern``; the last one
            where a name is missing.

    Returns:
        Boolean masks by name, shaped like the weights; True is kept. ``masks`` is not changed.

    Raises:
        InputError: ``sparsity`` is outside [0, 1], or a weight is NaN or infinite.
    """
    if not 0 <= sparsity <= 1:
        raise InputError(f"sparsity: {sparsity} is not a fraction of zeros in [0, 1]")
    masks = masks or {}
    dims = input_dims or {}
    after = {name: _mask(weight, masks.get(name)) for name, weight in weights.items()}
    pruned = {name: mask.numel() - int(torch.count_nonzero(mask)) for name, mask in after.items()}
    if pattern is not None:
        for name, mask in after.items():
            mask &= pattern.outside(weights[name], mask, dims.get(name, -1))
    everything = sparsity >= pattern.sparsity if pattern is not None else sparsity == 1
    for group in [list(weights)] if scope == "global" else [[name] for name in weights]:
        candidates = {name: after[name] for name in group}
        count = sum(int(torch.count_nonzero(mask)) for mask in candidates.values())
        if not everything:
            due = round(sparsity * sum(mask.numel() for mask in candidates.values()))
            count = min(max(due - sum(pruned[name] for name in group), 0), count)
        drop_smallest_(candidates, {name: weights[name] for name in group}, count)
    if pattern is not None:
        # The n largest were no candidates. To find them again takes less memory than to keep them.
        for name, weight in weights.items():
            before = _mask(weight, masks.get(name))
            outside = pattern.outside(weight, before, dims.get(name, -1))
            after[name] |= outside.logical_not_().logical_and_(before)
    return after


def _mask(weight: Tensor, mask: Tensor | None) -> Tensor:
    """A copy of a mask, where its weight is; everything is kept if there is none."""
    if mask is None:
        return torch.ones(weight.shape, dtype=torch.bool, device=weight.device)
    return mask.to(weight.device, copy=True)
