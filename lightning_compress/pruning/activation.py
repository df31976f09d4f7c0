"""Importance of heads and neurons by how much what they say varies, and how far it reaches.

Source: An et al., "Fluctuation-based Adaptive Structured Pruning for Large Language Models", 2024,
https://arxiv.org/abs/2312.11983.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from lightning_compress.models.calibration import Calibration
from lightning_compress.models.structure import Units
from lightning_compress.pruning.input_statistics import input_statistics
from lightning_compress.pruning.unit_weights import outgoing


def activation_scores(
    model: nn.Module, units: Sequence[Units], calibration: Calibration
) -> dict[str, Tensor]:
    """Variance of what a unit says times the squared norm of its outgoing weights.

    What is lost without the unit, once its mean has been folded into the bias.

    Returns:
        [U] float64, by name of the projection (``Units.output``).
    """
    seen = input_statistics(model, units, calibration)
    scores = {}
    for one in units:
        variance = seen[one.output].variance().reshape(one.count, -1)
        norms = outgoing(model, one).double().square().sum(0)
        scores[one.output] = (variance * norms).sum(1)
    return scores
