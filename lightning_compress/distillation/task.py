"""The task itself: what the labels say, beside what the teacher says."""

from dataclasses import dataclass

from lightning_compress.distillation.ramp import Ramped, check_ramp


@dataclass(frozen=True)
class TaskLoss:
    """Learn the labels, where there are any.

    Args:
        weight: of the loss; two numbers: at the first and the last step.

    Raises:
        InputError: the weight is not positive.
    """

    weight: Ramped = 0.1

    def __post_init__(self) -> None:
        check_ramp("losses.task.weight", self.weight, zero_at_one_end=True)
