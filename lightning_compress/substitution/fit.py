"""Compact blocks fitted to the layers that they replace: initialized, then distilled, in order."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from lightning_compress.models.calibration import Calibration
from lightning_compress.models.switch import ReplacementSwitch
from lightning_compress.substitution.block_distillation import block_error, distil_block_
from lightning_compress.substitution.captured import capture_block_io, capture_targets
from lightning_compress.substitution.initialization import Initialization, initialize_


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
        learning_rate: peak learning rate of these steps.
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
