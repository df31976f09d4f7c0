"""Relations: how like the student's queries, keys and values are to one another.

Source: Wang et al., "MiniLMv2: Multi-Head Self-Attention Relation Distillation for Compressing
Pretrained Transformers", 2021, https://arxiv.org/abs/2012.15828.
"""

from dataclasses import dataclass
from math import gcd

import torch
from torch import Tensor

from lightning_compress.distillation.layer_map import LayerMap
from lightning_compress.distillation.outputs import Attention
from lightning_compress.distillation.ramp import Ramped, check_ramp
from lightning_compress.distillation.token_pairs import pair_divergence
from lightning_compress.errors import InputError


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
