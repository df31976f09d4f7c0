"""Importance of heads and neurons by the size of their weights; needs no example.

First-order importance of heads and neurons.

Source: Michel, Levy and Neubig, "Are Sixteen Heads Really Better than One?", 2019,
https://arxiv.org/abs/1905.10650; for neurons Molchanov et al., "Importance Estimation for Neural
Network Pruning", 2019, https://arxiv.org/abs/1906.10771.

Second-order importance of heads and neurons: the diagonal of the Fisher information.

Source: Kwon et al., "A Fast Post-Training Pruning Framework for Transformers", 2022,
https://arxiv.org/abs/2204.09656.

Importance of heads and neurons by how much what they say varies, and how far it reaches.

Source: An et al., "Fluctuation-based Adaptive Structured Pruning for Large Language Models", 2024,
https://arxiv.org/abs/2312.11983.

The scores of heads and neurons by name.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_compress.models.calibration import Calibration
from lightning_compress.models.structure import Units, incoming, macs_per_token, outgoing
from lightning_compress.pruning.gate_gradients import mean_over_examples
from lightning_compress.pruning.reconstruction import input_statistics


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


def taylor_scores(
    model: nn.Module, units: Sequence[Units], calibration: Calibration
) -> dict[str, Tensor]:
    """Mean over the examples of ``|dL/dg|``: the change of an example's loss without the unit.

    Returns:
        [U] float64, by name of the projection (``Units.output``).
    """
    return mean_over_examples(model, units, calibration, torch.abs)


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
