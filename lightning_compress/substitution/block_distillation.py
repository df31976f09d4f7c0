"""Block distillation: a compact block is trained alone to reproduce the layers it replaces.

Source: Romero et al., "FitNets: Hints for Thin Deep Nets", 2015, https://arxiv.org/abs/1412.6550,
applied block by block. The inputs of a block come from the compact blocks before it, not from the
dense model, so that it also corrects their errors.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_compress.substitution.captured import BlockIO, run_block

_COSINE_WEIGHT = 0.1  # of the cosine distance, beside the squared error
_WARMUP_FRACTION = 0.05  # of the steps


def distil_block_(
    block: nn.Module,
    block_io: Sequence[BlockIO],
    *,
    steps: int,
    learning_rate: float,
    on_step: Callable[[float], None] = lambda error: None,
) -> None:
    """Train a compact block to reproduce the captured outputs, in place.

    The loss is the squared error divided by the targets' variance, plus 0.1 times the cosine
    distance. The order of the batches comes from torch's global generator.

    Args:
        block: only its parameters are trained; in eval mode, as the targets are without dropout.
        block_io: one captured batch each.
        steps: of AdamW, one batch each.
        learning_rate: peak of a schedule with a linear warm-up over 5 % of the steps and a cosine
            decay to zero.
        on_step: called after each step with the batch's error, defined as in :func:`block_error`.
    """
    optimizer = torch.optim.AdamW(block.parameters(), lr=learning_rate)
    warmup_steps = max(1, round(_WARMUP_FRACTION * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warmup_steps, 0.5 * (1 + math.cos(math.pi * step / steps))),
    )
    variance = target_variance(block_io)
    order: list[int] = []
    for _ in range(steps):
        order = order or torch.randperm(len(block_io)).tolist()
        io = block_io[order.pop()]
        optimizer.zero_grad()
        loss, error = _loss(block, io, variance)
        loss.backward()  # type: ignore[no-untyped-call]  # torch's
        nn.utils.clip_grad_norm_(block.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        on_step(float(error.detach()))
    optimizer.zero_grad()


@torch.no_grad()
def block_error(block: nn.Module, block_io: Sequence[BlockIO]) -> float:
    """Mean squared error over tokens, divided by the variance of the targets.

    0 is a perfect reproduction; 1 is the error of a block that outputs the targets' mean.
    """
    variance = target_variance(block_io)
    errors = [(_loss(block, io, variance)[1] * io.mask.sum()) for io in block_io]
    return float(sum(errors) / sum(io.mask.sum() for io in block_io))


@torch.no_grad()
def target_variance(block_io: Sequence[BlockIO]) -> Tensor:
    """Variance of the targets over tokens, averaged over the hidden dimensions: a scalar."""
    return torch.cat([io.target[io.mask] for io in block_io]).double().var(0).mean().float()


def _loss(block: nn.Module, io: BlockIO, variance: Tensor) -> tuple[Tensor, Tensor]:
    output, target = run_block(block, io)[io.mask], io.target[io.mask]
    error = (output - target).square().mean() / variance
    cosine_distance = 1 - functional.cosine_similarity(output, target, dim=-1).mean()
    return error + _COSINE_WEIGHT * cosine_distance, error
