"""Importance of whole layers, by four criteria side by side, and the selection of layers.

Every criterion is a function ``(model, calibration, without) -> [L] float64``: one score per
layer, where the layers in ``without`` are skipped already and score infinity; a higher score means
more important. :data:`LAYER_SCORES` lists them by the name that the option ``score`` of
LayerPruning takes: a new criterion is one function and one line of that table.

Sources:
    influence: Men et al., "ShortGPT: Layers in Large Language Models are More Redundant Than You
        Expect", 2024, https://arxiv.org/abs/2403.03853.
    last: Sajjad et al., "On the Effect of Dropping Layers of Pre-trained Transformer Models", 2023,
        https://arxiv.org/abs/2004.03844, "top-layer dropping".
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_compress.models.calibration import Calibration, divergence_from, token_mask
from lightning_compress.models.hooks import Call, after_calls
from lightning_compress.models.layers import skipped
from lightning_compress.models.structure import structure_of


@torch.no_grad()
def divergence_scores(
    model: nn.Module, calibration: Calibration, without: Sequence[int] = ()
) -> Tensor:
    """Divergence of the predictions from those of the whole model when one more layer is skipped.

    Kullback-Leibler divergence in nats; mean squared difference where the model predicts a single
    number.

    Args:
        model: a transformer of a known family.
        calibration: the examples; their labels are not used.
        without: layers that are skipped already.

    Returns:
        [L] float64.
    """
    layers = len(structure_of(model).layers)
    scores = torch.full((layers,), torch.inf, dtype=torch.float64)
    whole = [calibration.logits(batch) for batch in calibration.batches]
    for layer in range(layers):
        if layer in without:
            continue
        with skipped(model, [*without, layer]):
            scores[layer] = divergence_from(whole, calibration)
    return scores


@torch.no_grad()
def influence_scores(
    model: nn.Module, calibration: Calibration, without: Sequence[int] = ()
) -> Tensor:
    """One minus the cosine between a layer's input and output, mean over the tokens.

    Args:
        model: a transformer of a known family, whose layers are separate modules.
        calibration: the examples; their labels are not used.
        without: layers that are skipped already.

    Returns:
        [L] float64.
    """
    blocks = structure_of(model).layers
    total = torch.zeros(len(blocks), dtype=torch.float64)
    tokens = 0

    def add(layer: int, call: Call) -> None:
        cosine = functional.cosine_similarity(
            call.hidden.double(), call.hidden_output.double(), dim=-1
        )
        total[layer] += float((1 - cosine)[mask].sum())

    hooks = [
        (model.get_submodule(block), partial(add, layer)) for layer, block in enumerate(blocks)
    ]
    with after_calls(hooks), skipped(model, without):
        for batch in calibration.batches:
            mask = token_mask(batch, model)
            tokens += int(mask.sum())
            calibration.logits(batch)
    scores = total / tokens
    scores[list(without)] = torch.inf
    return scores


def last_scores(
    model: nn.Module, calibration: Calibration | None = None, without: Sequence[int] = ()
) -> Tensor:
    """The later a layer, the less important."""
    scores = -torch.arange(len(structure_of(model).layers), dtype=torch.float64)
    scores[list(without)] = torch.inf
    return scores


def random_scores(
    model: nn.Module, calibration: Calibration | None = None, without: Sequence[int] = ()
) -> Tensor:
    """Random numbers from torch's generator: the baseline."""
    scores = torch.rand(len(structure_of(model).layers), dtype=torch.float64)
    scores[list(without)] = torch.inf
    return scores


LAYER_SCORES: dict[str, Callable[[nn.Module, Calibration, Sequence[int]], Tensor]] = {
    "divergence": divergence_scores,
    "influence": influence_scores,
    "last": last_scores,
    "random": random_scores,
}

if TYPE_CHECKING:
    LayerScore = str
else:  # so that the command line lists the names and refuses others
    LayerScore = Literal[tuple(LAYER_SCORES)]


def select_layers(
    model: nn.Module, calibration: Calibration, count: int, score: LayerScore
) -> tuple[list[int], list[Tensor]]:
    """Select the least important layer, then the least important one without it, and so on.

    Args:
        model: a transformer of a known family.
        calibration: the examples.
        count: how many layers to select, fewer than there are.
        score: the criterion, a key of :data:`LAYER_SCORES`.

    Returns:
        The layers in the order of their selection, and the scores [L] before each selection.
    """
    selected: list[int] = []
    scores: list[Tensor] = []
    for _ in range(count):
        scores.append(LAYER_SCORES[score](model, calibration, selected))
        selected.append(int(scores[-1].argmin()))
    return selected, scores
