"""First-order importance of heads and neurons.

Source: Michel, Levy and Neubig, "Are Sixteen Heads Really Better than One?", 2019,
https://arxiv.org/abs/1905.10650; for neurons Molchanov et al., "Importance Estimation for Neural
Network Pruning", 2019, https://arxiv.org/abs/1906.10771.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_compress.models.calibration import Calibration
from lightning_compress.models.structure import Units
from lightning_compress.pruning.gate_gradients import mean_over_examples


def taylor_scores(
    model: nn.Module, units: Sequence[Units], calibration: Calibration
) -> dict[str, Tensor]:
    """Mean over the examples of ``|dL/dg|``: the change of an example's loss without the unit.

    Returns:
        [U] float64, by name of the projection (``Units.output``).
    """
    return mean_over_examples(model, units, calibration, torch.abs)
