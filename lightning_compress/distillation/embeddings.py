"""Embeddings: the student's picture of a whole text points where the teacher's points.

Source: Sanh et al., "DistilBERT, a distilled version of BERT", 2019,
https://arxiv.org/abs/1910.01108, whose cosine loss is over tokens; over whole texts it needs no
common tokenizer.
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from lightning_compress.distillation.ramp import Ramped, check_ramp


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
