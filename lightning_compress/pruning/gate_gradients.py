"""How the loss of every single example changes with every gate."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from lightning_compress.models.structure import Units
from lightning_compress.pruning.calibration import Calibration
from lightning_compress.pruning.gates import gated


def gate_gradients(
    model: nn.Module, units: Sequence[Units], calibration: Calibration
) -> Iterator[dict[str, Tensor]]:
    """Derivatives of each example's loss by the gates of all units, at gates of one.

    Every example gets gates of its own, so one backward pass a batch gives the gradients of all
    its examples apart: a mean over the batch would cancel much of what matters.

    Args:
        model: a transformer of a known family.
        units: heads, neurons or both.
        calibration: the examples. The loss has to be a mean over them; where examples weigh
            differently, as in language modelling, so do their gradients.

    Yields:
        For every batch: [B, U], by name of the projection (``Units.output``).
    """
    device = next(model.parameters()).device
    for batch in calibration.batches:
        examples = len(batch["input_ids"])
        gates = {
            one.output: torch.ones(examples, one.count, device=device, requires_grad=True)
            for one in units
        }
        with gated(model, gates), torch.enable_grad():
            loss = calibration.loss(batch) * examples
            gradients = torch.autograd.grad(loss, list(gates.values()))
        yield dict(zip(gates, gradients, strict=True))
