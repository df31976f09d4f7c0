"""Gates on heads and neurons: factors on what a unit says to the rest of the model.

How the loss of every single example changes with every gate.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lightning_compress.models.calibration import Calibration
from lightning_compress.models.structure import Units


@contextmanager
def gated(model: nn.Module, gates: Mapping[str, Tensor]) -> Iterator[None]:
    """Multiply units by gates while the context lasts.

    The gates sit on the inputs of the output projections, so that they work with every
    implementation of attention.

    Args:
        model: a transformer of a known family.
        gates: by name of the projection (``Units.output``), for its units in order: [U], or [B, U]
            with factors of its own for every example of the batch.
    """
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(_multiply_by(gate))
        for name, gate in gates.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _multiply_by(gate: Tensor):  # type: ignore[no-untyped-def]  # a hook, for torch alone
    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        said, *rest = inputs
        units = said.reshape(*said.shape[:-1], gate.shape[-1], -1)
        # [B, U] to [B, 1, ..., U, 1], to stand beside [B, S, U, W]
        factors = gate.reshape(*gate.shape[:-1], *(1,) * (units.dim() - gate.dim() - 1), -1, 1)
        return ((units * factors).flatten(-2).to(said.dtype), *rest)

    return hook


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


def mean_over_examples(
    model: nn.Module,
    units: Sequence[Units],
    calibration: Calibration,
    measure: Callable[[Tensor], Tensor],
) -> dict[str, Tensor]:
    """The mean over all examples of a measure of each gate's gradient.

    Args:
        model: a transformer of a known family.
        units: heads, neurons or both.
        calibration: the examples.
        measure: of each entry of a tensor, such as ``torch.abs``.

    Returns:
        [U] float64, by name of the projection (``Units.output``).
    """
    total: dict[str, Tensor] = {}
    examples = 0
    for gradients in gate_gradients(model, units, calibration):
        examples += len(next(iter(gradients.values())))
        for name, gradient in gradients.items():
            total[name] = total.get(name, 0) + measure(gradient.double()).sum(0)
    return {name: value / examples for name, value in total.items()}
