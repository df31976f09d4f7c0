"""Compact blocks fitted to the layers that they replace: initialized, then distilled, in order.

Source: Romero et al., "FitNets: Hints for Thin Deep Nets", 2015, https://arxiv.org/abs/1412.6550,
applied block by block. The inputs of a block come from the compact blocks before it, not from the
dense model, so that it also corrects their errors.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_compress.models.calibration import Calibration
from lightning_compress.models.switch import ReplacementSwitch
from lightning_compress.substitution.captured import (
    BlockIO,
    capture_block_io,
    capture_targets,
    run_block,
)
from lightning_compress.substitution.initialization import Initialization, initialize_

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


@dataclass(frozen=True)
class FitResult:
    """How well a compact block reproduces the layers that it replaces.

    Errors are squared errors divided by the variance of the targets; see
    :func:`~lightning_compress.substitution.block_distillation.block_error`.

    Args:
        initial_error: after initialization.
        error_curve: of the batch at each step of block distillation.
        final_error: after block distillation.
        explained_variance: fraction of the input variance that the down-projection preserves;
            None where the initialization has no principal components.
    """

    initial_error: float
    error_curve: list[float]
    final_error: float
    explained_variance: float | None


def fit_compact_blocks(
    switches: Sequence[ReplacementSwitch],
    calibration: Calibration,
    family: str,
    *,
    initialization: Initialization,
    distil_steps: int,
    learning_rate: float,
    on_step: Callable[[int], None] = lambda index: None,
) -> Iterator[FitResult]:
    """Initialize and distil the successors of a model in place, first to last.

    Each is fitted to the dense model's outputs on inputs that have passed the successors before it.

    Args:
        switches: all switches of the model, which is in eval mode.
        calibration: the examples.
        family: of the model.
        initialization: see :data:`~lightning_compress.substitution.initialization.Initialization`.
        distil_steps: optimizer steps for each block; 0: none.
        learning_rate: of these steps, at its peak.
        on_step: called with the index of the switch after each step.

    Yields:
        One result for each switch.
    """
    targets = capture_targets(switches, calibration)
    for index, switch in enumerate(switches):
        block_io = capture_block_io(switches, index, calibration, targets[index])
        explained = initialize_(switch, block_io, initialization, family)
        initial_error = block_error(switch.successor, block_io)
        curve: list[float] = []

        def record(error: float, index: int = index, curve: list[float] = curve) -> None:
            curve.append(error)
            on_step(index)

        if distil_steps:
            distil_block_(
                switch.successor,
                block_io,
                steps=distil_steps,
                learning_rate=learning_rate,
                on_step=record,
            )
        final_error = block_error(switch.successor, block_io)
        yield FitResult(initial_error, curve, final_error, explained)
