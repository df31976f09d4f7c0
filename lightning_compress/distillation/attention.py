"""Distillation of attention: attention maps, and relations between tokens.

Both compare two distributions over pairs of tokens by their KL divergence.

Sources:
    attention maps: Jiao et al., "TinyBERT: Distilling BERT for Natural Language Understanding",
        2020, https://arxiv.org/abs/1909.10351. The probabilities are compared, not the scores, as
        in Wang et al., "MiniLM", 2020, https://arxiv.org/abs/2002.10957.
    relations: Wang et al., "MiniLMv2: Multi-Head Self-Attention Relation Distillation for
        Compressing Pretrained Transformers", 2021, https://arxiv.org/abs/2012.15828.
"""

from dataclasses import dataclass
from math import gcd

import torch
from torch import Tensor
from torch.nn import functional

from lightning_compress.distillation.options import Annealed, LayerMap, check_annealed, check_layers
from lightning_compress.distillation.outputs import Attention
from lightning_compress.errors import InputError


def pair_divergence(student: Tensor, teacher: Tensor, mask: Tensor, *, causal: bool) -> Tensor:
    """KL(teacher || student) of the softmax over pairs of tokens, mean over heads and tokens.

    Args:
        student, teacher: [B, A, S, S] scores before the softmax.
        mask: [B, S], True at tokens, False at padding.
        causal: a token attends to itself and the tokens before it only.

    Returns:
        A scalar, in nats.
    """
    visible = mask[:, None, None, :]
    if causal:
        length = mask.shape[1]
        visible = visible & torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
    least = torch.finfo(student.dtype).min
    log_student = student.masked_fill(~visible, least).log_softmax(-1)
    log_teacher = teacher.to(student.dtype).masked_fill(~visible, least).log_softmax(-1)
    # Masked entries are close to minus infinity in both; their difference must not count.
    terms = functional.kl_div(log_student, log_teacher, log_target=True, reduction="none")
    each = terms.masked_fill(~visible, 0.0).sum(-1) * mask[:, None, :]
    return each.sum() / (mask.sum() * student.shape[1]).clamp(min=1)


@dataclass(frozen=True)
class AttentionMaps:
    """Match the teacher's attention maps, head by head: both need the same number of heads.

    Args:
        weight: of the loss; two numbers: at the first and the last step.
        layers: ``uniform``, ``last``, or ``{student layer: teacher layer}``, counted from 0.

    Raises:
        InputError: the weight is not positive.
    """

    weight: Annealed = 1.0
    layers: LayerMap = "uniform"

    def __post_init__(self) -> None:
        check_annealed("losses.attention_maps.weight", self.weight, zero_at_one_end=True)
        check_layers("losses.attention_maps.layers", self.layers)


def attention_map_loss(
    student: Attention, teacher: Attention, mask: Tensor, *, causal: bool
) -> Tensor:
    """KL divergence of the student's attention probabilities from the teacher's.

    Args:
        student, teacher: projections of one layer.
        mask: [B, S], True at tokens, False at padding.
        causal: a token attends to itself and the tokens before it only.

    Returns:
        A scalar, in nats: the mean over heads and tokens.

    Raises:
        InputError: they have different numbers of heads.
    """
    check_heads(student.heads, teacher.heads)
    return pair_divergence(_scores(student), _scores(teacher), mask, causal=causal)


def check_heads(student: int, teacher: int) -> None:
    """Require that two layers have the same number of heads.

    Raises:
        InputError: the numbers differ.
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
    """Match the similarities between tokens in the teacher's queries, keys and values.

    Neither the number of heads nor the width has to be equal, so students with pruned heads can
    learn them.

    Args:
        weight: of the loss; two numbers: at the first and the last step.
        layers: ``last`` (as in the source), ``uniform``, or ``{student layer: teacher layer}``,
            counted from 0.
        heads: number of relation heads that the projections are split into; default: the largest
            number, at most the teacher's number of heads, that divides both widths.

    Raises:
        InputError: the weight or the number of heads is not positive.
    """

    weight: Annealed = 1.0
    layers: LayerMap = "last"
    heads: int | None = None

    def __post_init__(self) -> None:
        check_annealed("losses.relations.weight", self.weight, zero_at_one_end=True)
        check_layers("losses.relations.layers", self.layers)
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
    """KL divergence of the student's relations from the teacher's.

    Args:
        student, teacher: projections of one layer.
        mask: [B, S], True at tokens, False at padding.
        causal: a token is compared with itself and the tokens before it only.
        heads: number of relation heads; default: see :class:`Relations`.

    Returns:
        A scalar, in nats: the mean over queries, keys and values.

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
    """Require that a projection can be split into relation heads.

    Raises:
        InputError: ``width`` is no multiple of ``heads``.
    """
    if width % heads:
        raise InputError(
            f"losses.relations.heads: {heads} heads do not divide a width of {width}; leave it out"
        )


def _relations(projection: Tensor, heads: int) -> Tensor:
    """[B, A, S, S] scaled dot products of the tokens in each relation head."""
    check_split(projection.shape[-1], heads)
    split = projection.reshape(*projection.shape[:-1], heads, -1).transpose(1, 2)
    products: Tensor = split @ split.transpose(-1, -2) / split.shape[-1] ** 0.5
    return products
