"""Distillation of hidden states, per token, and of the embedding of a whole text.

Sources:
    hidden states: Jiao et al., "TinyBERT: Distilling BERT for Natural Language Understanding",
        2020, https://arxiv.org/abs/1909.10351. Here the squared error is relative to the mean
        square of the teacher's states, so that a weight means the same for every family.
    embeddings: Sanh et al., "DistilBERT, a distilled version of BERT", 2019,
        https://arxiv.org/abs/1910.01108, whose cosine loss is per token; per text it does not need
        a common tokenizer.
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from lightning_compress.distillation.options import Annealed, LayerMap, check_annealed, check_layers


@dataclass(frozen=True)
class HiddenStates:
    """Match the teacher's hidden states, through a learned projection where widths differ.

    Args:
        weight: of the loss; two numbers: at the first and the last step.
        layers: ``uniform``, ``last``, or ``{student layer: teacher layer}``, counted from 0.

    Raises:
        InputError: the weight is not positive.
    """

    weight: Annealed = 1.0
    layers: LayerMap = "uniform"

    def __post_init__(self) -> None:
        check_annealed("losses.hidden_states.weight", self.weight, zero_at_one_end=True)
        check_layers("losses.hidden_states.layers", self.layers)


def hidden_state_loss(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error over tokens, relative to the mean square of the teacher's states.

    Args:
        student, teacher: [B, S, H].
        mask: [B, S], True at tokens, False at padding.

    Returns:
        A scalar.
    """
    student, teacher = student[mask], teacher[mask].to(student.dtype)
    return (student - teacher).square().mean() / teacher.square().mean()


@dataclass(frozen=True)
class Embeddings:
    """Match the direction of the teacher's text embedding, the mean of the last hidden states.

    Through a learned projection where widths differ.

    Args:
        weight: of the loss; two numbers: at the first and the last step.

    Raises:
        InputError: the weight is not positive.
    """

    weight: Annealed = 1.0

    def __post_init__(self) -> None:
        check_annealed("losses.embeddings.weight", self.weight, zero_at_one_end=True)


def embedding_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """One minus the cosine similarity of [B, H] and [B, H], mean over texts: a scalar."""
    return (1 - functional.cosine_similarity(student, teacher.to(student.dtype))).mean()
