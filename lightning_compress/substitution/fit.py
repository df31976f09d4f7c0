"""Compact blocks beside the layers they are to replace: each started and matched, in order."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from lightning_compress.models.calibration import Calibration
from lightning_compress.models.switch import Choice
from lightning_compress.substitution.block_distillation import match_, matching_error
from lightning_compress.substitution.captured import dense_outputs, passages
from lightning_compress.substitution.initialization import Start, start_


@dataclass(frozen=True)
class Prepared:
    """How well a compact block says what the old layers said.

    Args:
        start: its error at its start, as of :func:`matching_error`.
        curve: at each step of matching.
        end: once matched.
        kept: the share of the variance that its down-projection keeps, where that is known.
    """

    start: float
    curve: list[float]
    end: float
    kept: float | None


def prepare_(
    choices: Sequence[Choice],
    calibration: Calibration,
    family: str,
    *,
    start: Start,
    steps: int,
    learning_rate: float,
    on_step: Callable[[int], None] = lambda group: None,
) -> Iterator[Prepared]:
    """Start and match the compact blocks of a model, in place, first to last.

    Each sees what has passed the blocks before it, and has to say what came out in the dense model.

    Args:
        choices: of the model, in eval mode.
        calibration: the examples.
        family: of the model.
        start: from where.
        steps: of matching each; 0: none.
        learning_rate: of matching.
        on_step: told the number of the group, after each step.
    """
    targets = dense_outputs(choices, calibration)
    for index, choice in enumerate(choices):
        seen = passages(choices, index, calibration, targets[index])
        kept = start_(choice, seen, start, family)
        before = matching_error(choice.new, seen)
        curve: list[float] = []

        def note(error: float, index: int = index, curve: list[float] = curve) -> None:
            curve.append(error)
            on_step(index)

        if steps:
            match_(choice.new, seen, steps=steps, learning_rate=learning_rate, on_step=note)
        yield Prepared(before, curve, matching_error(choice.new, seen), kept)
