"""Hidden states: layers of the student learn what layers of the teacher compute.

Source: Jiao et al., "TinyBERT: Distilling BERT for Natural Language Understanding", 2020,
https://arxiv.org/abs/1909.10351. Other than there, the error is measured against the size of the
teacher's states, so that a weight means the same for every family.
"""

from dataclasses import dataclass

from torch import Tensor

from lightning_compress.distillation.layer_map import LayerMap
from lightning_compress.distillation.ramp import Ramped, check_ramp


@dataclass(frozen=True)
class HiddenStates:
    """Learn the teacher's hidden states, through a learned projection where widths differ.

    Args:
        weight: of the loss; two numbers: at the first and the last step.
        layers: ``uniform``, ``last``, or the teacher's layer by the student's, counted from 0.

    Raises:
        InputError: the weight is not positive.
    """

    weight: Ramped = 1.0
    layers: LayerMap = "uniform"

    def __post_init__(self) -> None:
        check_ramp("losses.hidden_states.weight", self.weight, zero_at_one_end=True)


def hidden_state_loss(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """The mean squared error over tokens, as a share of the teacher's mean square.

    Args:
        student, teacher: [B, S, H].
        mask: [B, S], true at tokens, false at padding.
    """
    student, teacher = student[mask], teacher[mask].to(student.dtype)
    return (student - teacher).square().mean() / teacher.square().mean()
