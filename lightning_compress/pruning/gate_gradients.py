"""Gates on heads and neurons, and the gradients of each example's loss by them.

A gate is a factor on the output of one unit: 1 leaves the model as it is, 0 removes the unit.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lightning_compress.models.calibration import Calibration
from lightning_compress.models.hooks import Call, Hook, before_calls
from lightning_compress.models.structure import Units
from lightning_compress.types import main_input


@contextmanager
def gated(model: nn.Module, gates: Mapping[str, Tensor]) -> Iterator[None]:
    """Multiply the outputs of units by gates within the context.

    The gates act on the inputs of the output projections, so they work with every implementation
    of attention.

    Args:
        model: a transformer of a known family.
        gates: by name of the projection (``Units.output``), for its units in order: [U], or [B, U]
            with separate factors for every example of the batch.
    """
    with before_calls(
        (model.get_submodule(name), _multiply_by(gate)) for name, gate in gates.items()
    ):
        yield


def _multiply_by(gate: Tensor) -> Hook:
    def hook(call: Call) -> tuple[Tensor, ...]:
        values, *rest = call.inputs
        units = values.reshape(*values.shape[:-1], gate.shape[-1], -1)
        # [B, U] to [B, 1, ..., U, 1], which broadcasts over [B, S, U, W]
        factors = gate.reshape(*gate.shape[:-1], *(1,) * (units.dim() - gate.dim() - 1), -1, 1)
        return ((units * factors).flatten(-2).to(values.dtype), *rest)

    return hook


def gate_gradients(
    model: nn.Module, units: Sequence[Units], calibration: Calibration
) -> Iterator[dict[str, Tensor]]:
    """Derivatives of each example's loss by the gates of all units, at gates of 1.

    Every example has its own gates, so one backward pass per batch gives the gradients of its
    examples separately: in a mean over the batch they would cancel each other.

    Args:
        model: a transformer of a known family.
        units: heads, neurons or both.
        calibration: the examples. The loss is a mean over them; where examples have different
            weights, as in language modelling, so have their gradients.

    Yields:
        For every batch: [B, U] by name of the projection (``Units.output``).
    """
    device = next(model.parameters()).device
    for batch in calibration.batches:
        examples = len(main_input(batch))
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
    """Mean over all examples of a function of each gate's gradient.

    Args:
        model: a transformer of a known family.
        units: heads, neurons or both.
        calibration: the examples.
        measure: the function, element by element, such as ``torch.abs``.

    Returns:
        [U] float64 by name of the projection (``Units.output``).
    """
    total: dict[str, Tensor] = {}
    examples = 0
    for gradients in gate_gradients(model, units, calibration):
        examples += len(next(iter(gradients.values())))
        for name, gradient in gradients.items():
            total[name] = total.get(name, 0) + measure(gradient.double()).sum(0)
    return {name: value / examples for name, value in total.items()}
