"""Importance of whole layers by what the model says without each of them."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_compress.models.structure import structure_of
from lightning_compress.pruning.calibration import Batch, Calibration, token_mask
from lightning_compress.pruning.skipping import skipped


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
        scores[layer] = divergence_without(model, calibration, [*without, layer], whole)
    return scores


@torch.no_grad()
def divergence_without(
    model: nn.Module, calibration: Calibration, layers: Sequence[int], whole: Sequence[Tensor]
) -> float:
    """How far the outputs move when these layers are skipped; ``whole``: of each batch before."""
    with skipped(model, layers):
        total = sum(
            _divergence(before, calibration.logits(batch), batch)
            for before, batch in zip(whole, calibration.batches, strict=True)
        )
    return total / sum(len(batch["input_ids"]) for batch in calibration.batches)


def _divergence(whole: Tensor, less: Tensor, batch: Batch) -> float:
    """Summed over the examples; of a language model over the mean of each example's tokens."""
    whole, less = whole.double(), less.double()
    if whole.shape[-1] == 1:
        return float((whole - less).square().sum())
    nats = functional.kl_div(
        less.log_softmax(-1), whole.log_softmax(-1), reduction="none", log_target=True
    ).sum(-1)
    if nats.dim() == 1:
        return float(nats.sum())
    mask = token_mask(batch)
    return float(((nats * mask).sum(1) / mask.sum(1).clamp(min=1)).sum())
