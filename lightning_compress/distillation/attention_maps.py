"""Attention maps: heads of the student look where the teacher's heads look.

Source: Jiao et al., "TinyBERT: Distilling BERT for Natural Language Understanding", 2020,
https://arxiv.org/abs/1909.10351. As in Wang et al., "MiniLM", 2020,
https://arxiv.org/abs/2002.10957, the distributions are compared, not the scores before them.
"""

from dataclasses import dataclass

from torch import Tensor

from lightning_compress.distillation.layer_map import LayerMap
from lightning_compress.distillation.outputs import Attention
from lightning_compress.distillation.ramp import Ramped, check_ramp
from lightning_compress.distillation.token_pairs import pair_divergence
from lightning_compress.errors import InputError


@dataclass(frozen=True)
class AttentionMaps:
    """Learn the teacher's attention, head by head: both need the same number of heads.

    Args:
        weight: of the loss; two numbers: at the first and the last step.
        layers: ``uniform``, ``last``, or the teacher's layer by the student's, counted from 0.

    Raises:
        InputError: the weight is not positive.
    """

    weight: Ramped = 1.0
    layers: LayerMap = "uniform"

    def __post_init__(self) -> None:
        check_ramp("losses.attention_maps.weight", self.weight, zero_at_one_end=True)


def attention_map_loss(
    student: Attention, teacher: Attention, mask: Tensor, *, causal: bool
) -> Tensor:
    """The mean divergence of the student's attention from the teacher's, in nats.

    Args:
        student, teacher: of one layer.
        mask: [B, S], true at tokens, false at padding.
        causal: a token sees itself and those before it.

    Raises:
        InputError: they have different numbers of heads.
    """
    check_heads(student.heads, teacher.heads)
    return pair_divergence(_scores(student), _scores(teacher), mask, causal=causal)


def check_heads(student: int, teacher: int) -> None:
    """See that two layers have the same number of heads.

    Raises:
        InputError: they do not.
    """
    if student != teacher:
        raise InputError(
            f"losses.attention_maps: the student has {student} heads in a layer and the teacher "
            f"{teacher}; use losses.relations, which compares any numbers of heads"
        )


def _scores(attention: Attention) -> Tensor:
    query, key = (
        one.reshape(*one.shape[:-1], attention.heads, -1).transpose(1, 2)
        for one in (attention.query, attention.key)
    )
    scores: Tensor = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    return scores
