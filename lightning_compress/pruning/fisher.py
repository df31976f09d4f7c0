"""Second-order importance of heads and neurons: the diagonal of the Fisher information.

Source: Kwon et al., "A Fast Post-Training Pruning Framework for Transformers", 2022,
https://arxiv.org/abs/2204.09656.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_compress.models.calibration import Calibration
from lightning_compress.models.structure import Units
from lightning_compress.pruning.gate_gradients import mean_over_examples


def fisher_scores(
    model: nn.Module, units: Sequence[Units], calibration: Calibration
) -> dict[str, Tensor]:
    """Mean over the examples of ``(dL/dg)²``: twice the rise of the loss without the unit.

    At a minimum of the loss, where its gradient vanishes and its curvature is about the Fisher
    information.

    Returns:
        [U] float64, by name of the projection (``Units.output``).
    """
    return mean_over_examples(model, units, calibration, torch.square)
