"""First-order importance of heads and neurons.

Source: Michel, Levy and Neubig, "Are Sixteen Heads Really Better than One?", 2019,
https://arxiv.org/abs/1905.10650; for neurons Molchanov et al., "Importance Estimation for Neural
Network Pruning", 2019, https://arxiv.org/abs/1906.10771.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from lightning_compress.models.structure import Units
from lightning_compress.pruning.calibration import Calibration
from lightning_compress.pruning.gate_gradients import gate_gradients


def taylor_scores(
    model: nn.Module, units: Sequence[Units], calibration: Calibration
) -> dict[str, Tensor]:
    """Mean over the examples of ``|dL/dg|``: the change of an example's loss without the unit.

    Returns:
        [U] float64, by name of the projection (``Units.output``).
    """
    total: dict[str, Tensor] = {}
    examples = 0
    for gradients in gate_gradients(model, units, calibration):
        examples += len(next(iter(gradients.values())))
        for name, gradient in gradients.items():
            total[name] = total.get(name, 0) + gradient.abs().double().sum(0)
    return {name: value / examples for name, value in total.items()}
