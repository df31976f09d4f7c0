"""Distances between distributions over pairs of tokens, as attention is one.

Attention maps: heads of the student look where the teacher's heads look.

Source: Jiao et al., "TinyBERT: Distilling BERT for Natural Language Understanding", 2020,
https://arxiv.org/abs/1909.10351. As in Wang et al., "MiniLM", 2020,
https://arxiv.org/abs/2002.10957, the distributions are compared, not the scores before them.

Relations: how like the student's queries, keys and values are to one another.

Source: Wang et al., "MiniLMv2: Multi-Head Self-Attention Relation Distillation for Compressing
Pretrained Transformers", 2021, https://arxiv.org/abs/2012.15828.
"""

from dataclasses import dataclass
from math import gcd

import torch
from torch import Tensor
from torch.nn import functional

from lightning_compress.distillation.annealing import Ramped, check_ramp
from lightning_compress.distillation.layer_map import LayerMap
from lightning_compress.distillation.outputs import Attention
from lightning_compress.errors import InputError


def pair_divergence(student: Tensor, teacher: Tensor, mask: Tensor, *, causal: bool) -> Tensor:
    """The mean divergence of the student's distributions from the teacher's.

    Args:
        student, teacher: [B, A, S, S] scores of each token for each token, before the softmax.
        mask: [B, S], true at tokens, false at padding.
        causal: a token sees itself and those before it.

    Returns:
        A scalar: KL(teacher || student) in nats, the mean over heads and tokens.
    """
    seen = mask[:, None, None, :]
    if causal:
        length = mask.shape[1]
        seen = seen & torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
    least = torch.finfo(student.dtype).min
    log_student = student.masked_fill(~seen, least).log_softmax(-1)
    log_teacher = teacher.to(student.dtype).masked_fill(~seen, least).log_softmax(-1)
    # Where nothing is seen both are as good as minus infinity, and their difference is none.
    terms = functional.kl_div(log_student, log_teacher, log_target=True, reduction="none")
    each = terms.masked_fill(~seen, 0.0).sum(-1) * mask[:, None, :]
    return each.sum() / (mask.sum() * student.shape[1]).clamp(min=1)


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


@dataclass(frozen=True)
class Relations:
    """Learn how like one another the teacher's tokens are, by their queries, keys and values.

    Neither the numbers of heads nor the widths have to be equal, so that it suits students whose
    heads are pruned.

    Args:
        weight: of the loss; two numbers: at the first and the last step.
        layers: ``last`` (as in the source), ``uniform``, or the teacher's layer by the student's,
            counted from 0.
        heads: into how many relation heads the projections are split anew; default: the largest
            number, up to that of the teacher's heads, that divides both widths.

    Raises:
        InputError: the weight or the number of heads is not positive.
    """

    weight: Ramped = 1.0
    layers: LayerMap = "last"
    heads: int | None = None

    def __post_init__(self) -> None:
        check_ramp("losses.relations.weight", self.weight, zero_at_one_end=True)
        if self.heads is not None and self.heads < 1:
            raise InputError(f"losses.relations.heads must be at least 1, not {self.heads}")


def relation_loss(
    student: Attention,
    teacher: Attention,
    mask: Tensor,
    *,
    causal: bool,
    heads: int | None = None,
) -> Tensor:
    """The divergence of the student's relations from the teacher's, in nats: the mean of three.

    Args:
        student, teacher: of one layer.
        mask: [B, S], true at tokens, false at padding.
        causal: a token is compared with itself and those before it.
        heads: relation heads; default: see :class:`Relations`.

    Raises:
        InputError: a width is no multiple of ``heads``.
    """
    losses = []
    for name in ("query", "key", "value"):
        small, large = getattr(student, name), getattr(teacher, name)
        split = heads or _common_heads(small.shape[-1], large.shape[-1], teacher.heads)
        relations = _relations(small, split), _relations(large, split)
        losses.append(pair_divergence(*relations, mask, causal=causal))
    return torch.stack(losses).mean()


def _common_heads(student: int, teacher: int, most: int) -> int:
    """The largest number up to ``most`` that divides both widths."""
    common = gcd(student, teacher)
    return next(heads for heads in range(min(most, common), 0, -1) if common % heads == 0)


def check_split(width: int, heads: int) -> None:
    """See that a projection can be split into relation heads.

    Raises:
        InputError: it cannot.
    """
    if width % heads:
        raise InputError(
            f"losses.relations.heads: {heads} heads do not divide a width of {width}; leave it out"
        )


def _relations(projection: Tensor, heads: int) -> Tensor:
    """[B, A, S, S] scaled products of the tokens' vectors in each relation head."""
    check_split(projection.shape[-1], heads)
    split = projection.reshape(*projection.shape[:-1], heads, -1).transpose(1, 2)
    products: Tensor = split @ split.transpose(-1, -2) / split.shape[-1] ** 0.5
    return products
