"""Hidden states: layers of the student learn what layers of the teacher compute.

Source: Jiao et al., "TinyBERT: Distilling BERT for Natural Language Understanding", 2020,
https://arxiv.org/abs/1909.10351. Other than there, the error is measured against the size of the
teacher's states, so that a weight means the same for every family.

Embeddings: the student's picture of a whole text points where the teacher's points.

Source: Sanh et al., "DistilBERT, a distilled version of BERT", 2019,
https://arxiv.org/abs/1910.01108, whose cosine loss is over tokens; over whole texts it needs no
common tokenizer.
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from lightning_compress.distillation.annealing import Ramped, check_ramp
from lightning_compress.distillation.layer_map import LayerMap


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


@dataclass(frozen=True)
class Embeddings:
    """Learn the direction of the teacher's mean last hidden state of a text.

    Through a learned projection where widths differ.

    Args:
        weight: of the loss; two numbers: at the first and the last step.

    Raises:
        InputError: the weight is not positive.
    """

    weight: Ramped = 1.0

    def __post_init__(self) -> None:
        check_ramp("losses.embeddings.weight", self.weight, zero_at_one_end=True)


def embedding_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """One minus the cosine between [B, H] and [B, H], the mean over texts."""
    return (1 - functional.cosine_similarity(student, teacher.to(student.dtype))).mean()
