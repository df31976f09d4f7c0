import math
from itertools import pairwise

import pytest
import torch
from torch.nn import functional

from lightning_compress.distillation.outputs import TopK
from lightning_compress.distillation.soft_targets import soft_target_loss

KINDS = ["categorical", "bernoulli", "continuous"]


def logits(*shape, seed=1, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)


def warm(row, temperature):
    return [value / temperature for value in row.tolist()]


def top_k(teacher, k, temperature):
    values, indices = teacher.topk(k)
    return TopK(
        values, indices.int(), {temperature: (teacher / temperature).logsumexp(-1), 99.0: teacher}
    )


@pytest.mark.parametrize("kind", ["categorical"])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_classes_are_the_divergence_at_a_temperature_times_its_square(
    slow_divergence, kind, temperature
):
    student, teacher = logits(7, 5), logits(7, 5, seed=2)
    nats = [
        slow_divergence(warm(own, temperature), warm(its, temperature))
        for own, its in zip(student, teacher, strict=True)
    ]
    found = soft_target_loss(student, teacher, kind, temperature=temperature)
    assert float(found) == pytest.approx(temperature**2 * sum(nats) / 7, rel=1e-12)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_several_labels_are_a_divergence_each(slow_divergence, temperature):
    student, teacher = logits(7, 5), logits(7, 5, seed=2)
    nats = []
    for row in range(7):
        for label in range(5):
            yes = [float(one[row, label]) / temperature for one in (student, teacher)]
            # The odds of yes and no are those of two classes, one of which scores zero.
            nats.append(slow_divergence(*([score, 0.0] for score in yes)))
    found = soft_target_loss(student, teacher, "bernoulli", temperature=temperature)
    assert float(found) == pytest.approx(temperature**2 * sum(nats) / 35, rel=1e-12)


def test_embeddings_are_squared_distances_whatever_their_width():
    student, teacher = (functional.normalize(logits(7, 6, seed=seed), dim=-1) for seed in (1, 2))
    cosines = [float(one @ other) for one, other in zip(student, teacher, strict=True)]
    found = soft_target_loss(student, teacher, "embedding", temperature=2.0)
    assert float(found) == pytest.approx(sum(2 - 2 * one for one in cosines) / 7, rel=1e-6)


def test_numbers_are_squared_errors_at_any_temperature():
    student, teacher = logits(7, 2), logits(7, 2, seed=2)
    errors = [float(student[i, j] - teacher[i, j]) ** 2 for i in range(7) for j in range(2)]
    for temperature in (1.0, 3.0):
        found = soft_target_loss(student, teacher, "continuous", temperature=temperature)
        assert float(found) == pytest.approx(sum(errors) / 14, rel=1e-12)


@pytest.mark.parametrize("kind", ["categorical"])
def test_hard_targets_are_the_likeliest_classes(kind):
    student, teacher = logits(7, 5), logits(7, 5, seed=2)
    losses = []
    for own, its in zip(student.tolist(), teacher.tolist(), strict=True):
        label = its.index(max(its))
        losses.append(math.log(sum(math.exp(score) for score in own)) - own[label])
    for temperature in (1.0, 3.0):
        found = soft_target_loss(student, teacher, kind, temperature=temperature, hard=True)
        assert float(found) == pytest.approx(sum(losses) / 7, rel=1e-12)
        some = top_k(teacher, 2, temperature)
        again = soft_target_loss(student, some, kind, temperature=temperature, hard=True)
        assert float(again) == pytest.approx(float(found), rel=1e-12)


def test_hard_targets_of_several_labels_are_yes_or_no():
    student, teacher = logits(7, 5), logits(7, 5, seed=2)
    losses = []
    for row in range(7):
        for label in range(5):
            sign = 1 if teacher[row, label] > 0 else -1
            losses.append(math.log1p(math.exp(-sign * float(student[row, label]))))
    found = soft_target_loss(student, teacher, "bernoulli", temperature=2.0, hard=True)
    assert float(found) == pytest.approx(sum(losses) / 35, rel=1e-12)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("k", [1, 3, 9])
def test_the_largest_logits_and_the_rest_are_one_outcome_each(slow_divergence, k, temperature):
    student, teacher = logits(6, 10), logits(6, 10, seed=2)
    nats = []
    for own, its in zip(student, teacher, strict=True):
        listed = its.argsort(descending=True)[:k].tolist()
        others = [token for token in range(10) if token not in listed]
        outcomes = []
        for row in (own, its):
            scores = warm(row, temperature)
            rest = math.log(sum(math.exp(scores[token]) for token in others))
            outcomes.append([*(scores[token] for token in listed), rest])
        assert len(outcomes[0]) == k + 1
        nats.append(slow_divergence(*outcomes))
    found = soft_target_loss(
        student, top_k(teacher, k, temperature), "categorical", temperature=temperature
    )
    assert float(found) == pytest.approx(temperature**2 * sum(nats) / 6, rel=1e-9)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_all_logits_are_the_whole_divergence_and_fewer_never_more(temperature):
    for seed in range(20):
        student, teacher = logits(3, 12, seed=seed), logits(3, 12, seed=seed + 100)
        whole = float(soft_target_loss(student, teacher, "categorical", temperature=temperature))
        found = [
            float(
                soft_target_loss(
                    student, top_k(teacher, k, temperature), "categorical", temperature=temperature
                )
            )
            for k in range(1, 13)
        ]
        assert found[-1] == pytest.approx(whole, rel=1e-12)
        assert all(value <= whole * (1 + 1e-9) for value in found)
        for less, more in pairwise(found):  # what is told apart can only add
            assert less <= more * (1 + 1e-9)


def test_the_largest_logits_in_float32_leave_a_rest_that_is_bounded():
    # A teacher so sure that float32 leaves nothing for the rest.
    teacher = torch.tensor([[60.0, 30.0, 0.0, 0.0, 0.0]])
    student = torch.tensor([[0.0, 0.0, 70.0, 0.0, 0.0]], requires_grad=True)
    loss = soft_target_loss(student, top_k(teacher, 2, 1.0), "categorical", temperature=1.0)
    loss.backward()
    assert loss.item() == pytest.approx(70.0, rel=1e-4)
    assert student.grad is not None
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("hard", [False, True])
def test_only_the_positions_that_are_asked_for_count(hard):
    student, teacher = logits(3, 4, 10), logits(3, 4, 10, seed=2)
    asked = torch.tensor([[1, 0, 0, 1], [0, 0, 0, 0], [0, 1, 0, 0]]).bool()
    places = [(0, 0), (0, 3), (2, 1)]
    options = {"temperature": 2.0, "hard": hard}
    alone = [
        soft_target_loss(student[i : i + 1, j], teacher[i : i + 1, j], "categorical", **options)
        for i, j in places
    ]
    found = soft_target_loss(student[asked], teacher[asked], "categorical", **options)
    assert float(found) == pytest.approx(float(sum(alone)) / 3, rel=1e-12)
    some = soft_target_loss(
        student[asked], top_k(teacher, 10, 2.0)[asked], "categorical", **options
    )
    assert float(some) == pytest.approx(float(found), rel=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_learned_from_nothing(kind):
    student = logits(0, 5).requires_grad_()
    for teacher in (logits(0, 5), top_k(logits(0, 5), 2, 2.0)):
        loss = soft_target_loss(student, teacher, kind, temperature=2.0)
        assert loss.item() == 0
        loss.backward()


@pytest.mark.parametrize("kind", KINDS)
def test_the_term_and_its_gradient_vanish_where_both_agree(kind):
    teacher = logits(7, 5)
    for target in (teacher, *(top_k(teacher, k, 2.0) for k in (1, 3, 5))):
        if isinstance(target, TopK) and kind != "categorical":
            continue
        student = teacher.clone().requires_grad_()
        loss = soft_target_loss(student, target, kind, temperature=2.0)
        loss.backward()
        assert abs(loss.item()) < 1e-12
        assert student.grad is not None
        assert student.grad.abs().max() < 1e-12


@pytest.mark.parametrize("kind", KINDS[:3])
def test_the_gradient_draws_towards_the_teacher_alone(kind):
    student, teacher = logits(7, 5).requires_grad_(), logits(7, 5, seed=2)
    with torch.no_grad():
        before = soft_target_loss(student, teacher, kind, temperature=2.0)
    soft_target_loss(student, teacher, kind, temperature=2.0).backward()
    assert student.grad is not None
    closer = student.detach() - 0.1 * student.grad
    assert soft_target_loss(closer, teacher, kind, temperature=2.0) < before


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_taken_up_to_float32(kind, dtype):
    student, teacher = logits(7, 50).to(dtype), logits(7, 50, seed=2).float()
    found = soft_target_loss(student, teacher, kind, temperature=2.0)
    assert found.dtype == torch.float32
    exact = soft_target_loss(student.double(), teacher.double(), kind, temperature=2.0)
    assert float(found) == pytest.approx(float(exact), rel=1e-5)


def test_hinton_s_square_keeps_gradients_alike_at_high_temperatures():
    # Section 2.1 of the source: far above the logits the gradient is (z - v) / C, centred.
    student, teacher = logits(1, 5).requires_grad_(), logits(1, 5, seed=2)
    soft_target_loss(student, teacher, "categorical", temperature=1e4).backward()
    assert student.grad is not None
    apart = (student - student.mean()) - (teacher - teacher.mean())
    assert torch.allclose(student.grad, apart.detach() / 5, rtol=1e-2, atol=1e-3)
    assert not torch.allclose(
        functional.softmax(student.detach(), -1), functional.softmax(teacher, -1), atol=1e-2
    )
