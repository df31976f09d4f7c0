"""Importance of whole layers by what the model says without each of them."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_compress.models.calibration import Calibration
from lightning_compress.models.divergence import divergence_from
from lightning_compress.models.skipping import skipped
from lightning_compress.models.structure import structure_of


@torch.no_grad()
def divergence_scores(
    model: nn.Module, calibration: Calibration, without: Sequence[int] = ()
) -> Tensor:
    """How far the outputs move when one more layer is skipped.

    The Kullback-Leibler divergence from the whole model's predictions, in nats; the mean squared
    difference where the model predicts a single number.

    Args:
        model: a transformer of a known family.
        calibration: the examples; their labels are not used.
        without: layers that are skipped already. Their score is infinite.

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
