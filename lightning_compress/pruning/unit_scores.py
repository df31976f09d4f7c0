"""The scores of heads and neurons by name."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_compress.models.calibration import Calibration
from lightning_compress.models.structure import Units
from lightning_compress.pruning.activation import activation_scores
from lightning_compress.pruning.fisher import fisher_scores
from lightning_compress.pruning.taylor import taylor_scores
from lightning_compress.pruning.unit_magnitude import magnitude_scores
from lightning_compress.pruning.unit_weights import macs_per_token

UnitScore = Literal["magnitude", "taylor", "fisher", "activation", "random"]
Scoring = Callable[[nn.Module, Sequence[Units], Calibration], dict[str, Tensor]]


def random_scores(
    model: nn.Module, units: Sequence[Units], calibration: Calibration
) -> dict[str, Tensor]:
    """What any other score has to beat: random numbers, in proportion to what a unit costs."""
    return {
        one.output: torch.rand(one.count, dtype=torch.float64) * macs_per_token(model, one)
        for one in units
    }


UNIT_SCORES: dict[UnitScore, Scoring] = {
    "magnitude": magnitude_scores,
    "taylor": taylor_scores,
    "fisher": fisher_scores,
    "activation": activation_scores,
    "random": random_scores,
}
