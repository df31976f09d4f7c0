"""Calibration examples, how a model is run on them, and the divergence of its predictions."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_compress.models.forward import image_tokens
from lightning_compress.types import Batch, main_input


@dataclass(frozen=True)
class Calibration:
    """Calibration examples and how to run a model on them.

    The model should be in eval mode, without dropout.

    Args:
        batches: ``input_ids`` [B, S], ``attention_mask`` [B, S] where there is padding, or
            ``pixel_values`` of images; ``labels`` where the loss needs them; on the model's device.
        loss: mean loss over a batch's examples, a scalar.
        logits: the model's logits of a batch: [B, C], or [B, S, V].
        numbers: the logits are numbers, of a regression or an embedding, and not classes.
    """

    batches: Sequence[Batch]
    loss: Callable[[Batch], Tensor]
    logits: Callable[[Batch], Tensor]
    numbers: bool = False

    def tokens(self, model: nn.Module) -> float:
        """Mean number of tokens of an example, padding not counted."""
        masks = [token_mask(batch, model) for batch in self.batches]
        return sum(int(m.sum()) for m in masks) / sum(len(m) for m in masks)


def token_mask(batch: Batch, model: nn.Module | None = None) -> Tensor:
    """True at tokens, False at padding: boolean [B, S].

    Args:
        batch: of texts, or of images, of which each patch is a token.
        model: that reads the images; without it each image is one token.
    """
    ids = main_input(batch)
    if "input_ids" not in batch:
        tokens = 1 if model is None else image_tokens(model)
        return torch.ones(len(ids), tokens, dtype=torch.bool, device=ids.device)
    mask = batch.get("attention_mask")
    return torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()


@contextmanager
def in_one_piece(*models: nn.Module) -> Iterator[None]:
    """Turn off chunking of feed-forward layers while the context lasts.

    ``config.chunk_size_feed_forward`` splits sequences into chunks to save memory, with the same
    result, but a hook could then not tell which tokens it gets.
    """
    modules: list[Any] = [
        module
        for model in models
        for module in model.modules()
        if hasattr(module, "chunk_size_feed_forward")
    ]
    sizes = [module.chunk_size_feed_forward for module in modules]
    try:
        for module in modules:
            module.chunk_size_feed_forward = 0
        yield
    finally:
        for module, size in zip(modules, sizes, strict=True):
            module.chunk_size_feed_forward = size


@torch.no_grad()
def divergence_from(whole: Sequence[Tensor], calibration: Calibration) -> float:
    """The Kullback-Leibler divergence KL(before || now) of the model's predictions.

    Args:
        whole: the logits before, of each batch: [B, C], or [B, S, V].
        calibration: the examples; their labels are not used.

    Returns:
        Nats, in the mean of the examples, of a language model of their tokens; the mean squared
        difference where the model predicts numbers.
    """
    total = sum(
        _divergence(before, calibration.logits(batch), batch, numbers=calibration.numbers)
        for before, batch in zip(whole, calibration.batches, strict=True)
    )
    return total / sum(len(main_input(batch)) for batch in calibration.batches)


def _divergence(whole: Tensor, less: Tensor, batch: Batch, *, numbers: bool) -> float:
    """Summed over the examples; of a language model over the mean of each example's tokens."""
    whole, less = whole.double(), less.double()
    if numbers or whole.shape[-1] == 1:
        each = (whole - less).square().mean(-1)
    else:
        each = functional.kl_div(
            less.log_softmax(-1), whole.log_softmax(-1), reduction="none", log_target=True
        ).sum(-1)
    if each.dim() == 1:
        return float(each.sum())
    mask = token_mask(batch)
    return float(((each * mask).sum(1) / mask.sum(1).clamp(min=1)).sum())
