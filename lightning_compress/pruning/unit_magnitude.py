"""Importance of heads and neurons by the size of their weights; needs no example."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_compress.models.calibration import Calibration
from lightning_compress.models.structure import Units
from lightning_compress.pruning.unit_weights import incoming, outgoing


def magnitude_scores(
    model: nn.Module, units: Sequence[Units], calibration: Calibration | None = None
) -> dict[str, Tensor]:
    """Sum of squares of a unit's weights: those that reach it and those by which it reaches on.

    Source: Li et al., "Pruning Filters for Efficient ConvNets", 2017,
    https://arxiv.org/abs/1608.08710, with the outgoing weights taken in.

    Returns:
        [U] float64, by name of the projection (``Units.output``).
    """
    scores = {}
    for one in units:
        weights = [*incoming(model, one), outgoing(model, one).transpose(0, 1).flatten(1)]
        scores[one.output] = torch.cat(weights, dim=1).double().square().sum(1)
    return scores
