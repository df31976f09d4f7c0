"""Soft targets: the student learns what the teacher believes, not only what is right.

Source: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015,
https://arxiv.org/abs/1503.02531.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from lightning_compress.distillation.annealing import Ramped, check_ramp
from lightning_compress.distillation.outputs import TopK
from lightning_compress.tasks.task import Distribution


@dataclass(frozen=True)
class SoftTargets:
    """Learn the teacher's predictions.

    Classes: KL divergence at a temperature, times its square so that the weight means the same at
    all temperatures. Several labels at once: the same of each label. Numbers: mean squared error.
    Language models: as classes, at every token that is asked for.

    Args:
        weight: of the loss; two numbers: at the first and the last step.
        temperature: above one it shows what else the teacher thinks possible; one number or two.
        hard: learn only what the teacher thinks likeliest, as if it were the label.

    Raises:
        InputError: a weight or temperature is not positive.
    """

    weight: Ramped = 0.9
    temperature: Ramped = 2.0
    hard: bool = False

    def __post_init__(self) -> None:
        check_ramp("losses.soft_targets.weight", self.weight, zero_at_one_end=True)
        check_ramp("losses.soft_targets.temperature", self.temperature, zero_at_one_end=False)


def soft_target_loss(
    student: Tensor,
    teacher: Tensor | TopK,
    distribution: Distribution,
    *,
    temperature: float,
    hard: bool = False,
) -> Tensor:
    """The mean distance of the student's predictions from the teacher's.

    Args:
        student: [N, C] logits of examples, or of tokens.
        teacher: [N, C], or the largest of a language model's.
        distribution: how logits become predictions, see :class:`~lightning_compress.tasks.Task`.
        temperature: of both.
        hard: take the teacher's likeliest answer for the label.

    Returns:
        A scalar; zero if N is 0. A regression has no hard targets.
    """
    student = student.float() if student.dtype in (torch.float16, torch.bfloat16) else student
    if not len(student):
        return student.sum()
    if isinstance(teacher, TopK):
        if hard:
            return functional.cross_entropy(student, teacher.indices[:, 0].long())
        return _top_k_divergence(student, teacher, temperature) * temperature**2
    teacher = teacher.to(student.dtype)
    if distribution == "continuous":
        return functional.mse_loss(student, teacher)
    if distribution == "bernoulli":
        if hard:
            targets = (teacher > 0).to(student.dtype)
            return functional.binary_cross_entropy_with_logits(student, targets)
        return _binary_divergence(student / temperature, teacher / temperature) * temperature**2
    if hard:
        return functional.cross_entropy(student, teacher.argmax(-1))
    divergence = functional.kl_div(
        (student / temperature).log_softmax(-1),
        (teacher / temperature).log_softmax(-1),
        log_target=True,
        reduction="batchmean",
    )
    return divergence * temperature**2


def _binary_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Of the distributions over yes and no, the mean over examples and labels."""
    yes = functional.logsigmoid(teacher).exp()
    return (
        yes * (functional.logsigmoid(teacher) - functional.logsigmoid(student))
        + (1 - yes) * (functional.logsigmoid(-teacher) - functional.logsigmoid(-student))
    ).mean()


def _top_k_divergence(student: Tensor, teacher: TopK, temperature: float) -> Tensor:
    """KL over the teacher's likeliest tokens, and all the others as one.

    It is at most the divergence over all tokens, and equal to it if those are all there are.
    """
    log_all = (student / temperature).log_softmax(-1)
    log_student = log_all.gather(-1, teacher.indices.long())
    values = teacher.values.to(student.dtype) / temperature
    log_teacher = values - teacher.logsumexp[temperature].to(student.dtype).unsqueeze(-1)
    listed = (log_teacher.exp() * (log_teacher - log_student)).sum(-1)
    if teacher.values.shape[-1] == student.shape[-1]:
        return listed.mean()
    rest_teacher, rest_student = _rest(log_teacher), _rest(log_student)
    others = rest_teacher.exp() * (rest_teacher - rest_student)
    return (listed + others).mean()


def _rest(log_listed: Tensor) -> Tensor:
    """The logarithm of the probability that is left; bounded where rounding leaves none."""
    left = 1 - log_listed.exp().sum(-1)
    return left.clamp(min=torch.finfo(left.dtype).eps).log()
