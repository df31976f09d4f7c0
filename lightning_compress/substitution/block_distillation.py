"""Local distillation: a compact block learns what the layers said that it replaces.

Source: as in FitNets: Romero et al., "FitNets: Hints for Thin Deep Nets", 2015,
https://arxiv.org/abs/1412.6550, block by block. What goes in has passed the compact blocks before
it, so that each learns to correct the errors of the earlier ones.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_compress.substitution.captured import Passage, through

_COSINE = 0.1  # weight of the direction beside the squared error


_WARMUP = 0.05


def match_(
    block: nn.Module,
    passages: Sequence[Passage],
    *,
    steps: int,
    learning_rate: float,
    on_step: Callable[[float], None] = lambda error: None,
) -> None:
    """Train a compact block to say what the old layers said, in place.

    Batches are drawn by torch's generator.

    Args:
        block: only its parameters learn; in eval mode, for the old layers had no dropout either.
        passages: what goes in, and what has to come out.
        steps: of AdamW, a batch each.
        learning_rate: its peak, behind a short rise; it falls as a cosine.
        on_step: told the error of each step, as of :func:`matching_error`.
    """
    optimizer = torch.optim.AdamW(block.parameters(), lr=learning_rate)
    rise = max(1, round(_WARMUP * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / rise, 0.5 * (1 + math.cos(math.pi * step / steps))),
    )
    scale = variance(passages)
    order: list[int] = []
    for _ in range(steps):
        order = order or torch.randperm(len(passages)).tolist()
        passage = passages[order.pop()]
        optimizer.zero_grad()
        loss, error = _loss(block, passage, scale)
        loss.backward()  # type: ignore[no-untyped-call]  # torch's
        nn.utils.clip_grad_norm_(block.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        on_step(float(error.detach()))
    optimizer.zero_grad()


@torch.no_grad()
def matching_error(block: nn.Module, passages: Sequence[Passage]) -> float:
    """The mean squared error over tokens, as a share of the variance of what has to come out."""
    scale = variance(passages)
    errors = [(_loss(block, one, scale)[1] * one.mask.sum()) for one in passages]
    return float(sum(errors) / sum(one.mask.sum() for one in passages))


@torch.no_grad()
def variance(passages: Sequence[Passage]) -> Tensor:
    """Of what has to come out, over tokens, the mean over its width."""
    return torch.cat([one.target[one.mask] for one in passages]).double().var(0).mean().float()


def _loss(block: nn.Module, passage: Passage, scale: Tensor) -> tuple[Tensor, Tensor]:
    found, target = through(block, passage)[passage.mask], passage.target[passage.mask]
    error = (found - target).square().mean() / scale
    turned = 1 - functional.cosine_similarity(found, target, dim=-1).mean()
    return error + _COSINE * turned, error
