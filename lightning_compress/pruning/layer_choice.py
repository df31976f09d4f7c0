"""Which layers go, chosen one after the other."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_compress.models.calibration import Calibration
from lightning_compress.models.structure import structure_of
from lightning_compress.pruning.block_influence import influence_scores
from lightning_compress.pruning.layer_divergence import divergence_scores

LayerScore = Literal["divergence", "influence", "last", "random"]


def last_scores(model: nn.Module, calibration: Calibration, without: Sequence[int] = ()) -> Tensor:
    """The plain baseline: the later a layer, the sooner it goes."""
    scores = -torch.arange(len(structure_of(model).layers), dtype=torch.float64)
    scores[list(without)] = torch.inf
    return scores


def random_scores(
    model: nn.Module, calibration: Calibration, without: Sequence[int] = ()
) -> Tensor:
    """What any other score has to beat: numbers drawn from torch's generator."""
    scores = torch.rand(len(structure_of(model).layers), dtype=torch.float64)
    scores[list(without)] = torch.inf
    return scores


_SCORES: dict[LayerScore, Callable[[nn.Module, Calibration, Sequence[int]], Tensor]] = {
    "divergence": divergence_scores,
    "influence": influence_scores,
    "last": last_scores,
    "random": random_scores,
}


def choose_layers(
    model: nn.Module, calibration: Calibration, count: int, score: LayerScore
) -> tuple[list[int], list[Tensor]]:
    """Choose the least important layer, then the next one given that it is gone, and so on.

    Args:
        model: a transformer of a known family.
        calibration: the examples.
        count: how many layers to choose, fewer than there are.
        score: by what.

    Returns:
        The layers in the order in which they were chosen, and the scores [L] before each choice.
    """
    chosen: list[int] = []
    rounds: list[Tensor] = []
    for _ in range(count):
        rounds.append(_SCORES[score](model, calibration, chosen))
        chosen.append(int(rounds[-1].argmin()))
    return chosen, rounds
