"""Soft targets: the student matches the teacher's output distribution.

Source: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015,
https://arxiv.org/abs/1503.02531.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from lightning_compress.distillation.options import Annealed, check_annealed
from lightning_compress.distillation.outputs import TopK
from lightning_compress.tasks.task import Distribution


@dataclass(frozen=True)
class SoftTargets:
    """Match the teacher's predictions.

    Classification: KL divergence at a temperature, times the temperature squared so that the weight
    means the same at all temperatures. Multi-label classification: the same for each label.
    Regression: mean squared error. Language models: as classification, at every target token.

    Args:
        weight: of the loss; two numbers: at the first and the last step.
        temperature: of the softmax of both models; two numbers: at the first and the last step.
        hard: use the teacher's most probable class as the label instead.

    Raises:
        InputError: a weight or temperature is not positive.
    """

    weight: Annealed = 0.9
    temperature: Annealed = 2.0
    hard: bool = False

    def __post_init__(self) -> None:
        check_annealed("losses.soft_targets.weight", self.weight, zero_at_one_end=True)
        check_annealed("losses.soft_targets.temperature", self.temperature, zero_at_one_end=False)


def soft_target_loss(
    student: Tensor,
    teacher: Tensor | TopK,
    distribution: Distribution,
    *,
    temperature: float,
    hard: bool = False,
) -> Tensor:
    """Divergence of the student's predictions from the teacher's.

    Args:
        student: [N, C] logits of examples, or of tokens.
        teacher: [N, C] logits, or the largest of a language model's.
        distribution: how logits become predictions, see :class:`~lightning_compress.tasks.Task`.
        temperature: of the softmax of both.
        hard: use the teacher's most probable class as the label.

    Returns:
        A scalar, the mean over N; zero if N is 0. Numbers have no hard targets.
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
    if distribution == "embedding":  # of vectors of length 1: 2 - 2 cosine, whatever their width
        return (student - teacher).square().sum(-1).mean()
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
    """KL divergence of Bernoulli distributions, mean over examples and labels."""
    yes = functional.logsigmoid(teacher).exp()
    return (
        yes * (functional.logsigmoid(teacher) - functional.logsigmoid(student))
        + (1 - yes) * (functional.logsigmoid(-teacher) - functional.logsigmoid(-student))
    ).mean()


def _top_k_divergence(student: Tensor, teacher: TopK, temperature: float) -> Tensor:
    """KL divergence over the teacher's top k tokens, with all other tokens merged into one.

    A lower bound of the divergence over all tokens, and equal to it if k is the vocabulary's size.
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
    """The logarithm of the remaining probability, bounded below by the rounding error."""
    left = 1 - log_listed.exp().sum(-1)
    return left.clamp(min=torch.finfo(left.dtype).eps).log()
