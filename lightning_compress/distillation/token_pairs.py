"""Distances between distributions over pairs of tokens, as attention is one."""

import torch
from torch import Tensor
from torch.nn import functional


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
