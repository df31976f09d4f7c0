"""Importance of attention heads and feed-forward neurons, by five criteria side by side.

Every criterion is a function ``(model, units, calibration) -> {projection: [U] float64}``: one
score per unit, under the name of the units' output projection (``Units.output``); a higher score
means more important. :data:`UNIT_SCORES` lists them by the name that the callbacks' option
``score`` takes: a new criterion is one function and one line of that table.

Sources:
    magnitude: Li et al., "Pruning Filters for Efficient ConvNets", 2017,
        https://arxiv.org/abs/1608.08710; here the outgoing weights count as well.
    taylor: Michel, Levy and Neubig, "Are Sixteen Heads Really Better than One?", 2019,
        https://arxiv.org/abs/1905.10650; for neurons Molchanov et al., "Importance Estimation for
        Neural Network Pruning", 2019, https://arxiv.org/abs/1906.10771.
    fisher: Kwon et al., "A Fast Post-Training Pruning Framework for Transformers", 2022,
        https://arxiv.org/abs/2204.09656; here with the gradients of single examples.
    activation: An et al., "Fluctuation-based Adaptive Structured Pruning for Large Language
        Models", 2024, https://arxiv.org/abs/2312.11983.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from lightning_compress.models.calibration import Calibration
from lightning_compress.models.structure import Units, incoming, macs_per_token, outgoing
from lightning_compress.pruning.gate_gradients import mean_over_examples
from lightning_compress.pruning.reconstruction import input_statistics


def magnitude_scores(
    model: nn.Module, units: Sequence[Units], calibration: Calibration | None = None
) -> dict[str, Tensor]:
    """Sum of the squares of a unit's incoming and outgoing weights; needs no examples."""
    scores = {}
    for one in units:
        weights = [*incoming(model, one), outgoing(model, one).transpose(0, 1).flatten(1)]
        scores[one.output] = torch.cat(weights, dim=1).double().square().sum(1)
    return scores


def taylor_scores(
    model: nn.Module, units: Sequence[Units], calibration: Calibration
) -> dict[str, Tensor]:
    """Mean over the examples of ``|dL/dg|``, the gradient of the loss by a unit's gate g.

    First-order estimate of how much the loss of an example changes without the unit.
    """
    return mean_over_examples(model, units, calibration, torch.abs)


def fisher_scores(
    model: nn.Module, units: Sequence[Units], calibration: Calibration
) -> dict[str, Tensor]:
    """Mean over the examples of ``(dL/dg)²``: the diagonal of the gates' Fisher information.

    At a minimum of the loss, where the curvature is about the Fisher information, it is twice the
    increase of the loss without the unit.
    """
    return mean_over_examples(model, units, calibration, torch.square)


def activation_scores(
    model: nn.Module, units: Sequence[Units], calibration: Calibration
) -> dict[str, Tensor]:
    """Variance of a unit's output over the tokens, times the squared norm of its outgoing weights.

    The squared error in the layer's output without the unit, once the mean of the unit's output
    is in the bias.
    """
    statistics = input_statistics(model, units, calibration)
    scores = {}
    for one in units:
        variance = statistics[one.output].variance().reshape(one.count, -1)
        norms = outgoing(model, one).double().square().sum(0)
        scores[one.output] = (variance * norms).sum(1)
    return scores


def random_scores(
    model: nn.Module, units: Sequence[Units], calibration: Calibration | None = None
) -> dict[str, Tensor]:
    """Random numbers in proportion to a unit's MACs, from torch's generator: the baseline."""
    return {
        one.output: torch.rand(one.count, dtype=torch.float64) * macs_per_token(model, one)
        for one in units
    }


UNIT_SCORES: dict[str, Callable[[nn.Module, Sequence[Units], Calibration], dict[str, Tensor]]] = {
    "magnitude": magnitude_scores,
    "taylor": taylor_scores,
    "fisher": fisher_scores,
    "activation": activation_scores,
    "random": random_scores,
}

if TYPE_CHECKING:
    UnitScore = str
else:  # so that the command line lists the names and refuses others
    UnitScore = Literal[tuple(UNIT_SCORES)]
