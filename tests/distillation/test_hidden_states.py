import pytest
import torch

from lightning_compress.distillation.hidden_states import hidden_state_loss

MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0]]).bool()


def states(seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, 4, 5, generator=generator, dtype=torch.float64)


def test_it_is_the_squared_error_of_tokens_against_the_teacher_s_size():
    student, teacher = states(1), 2 + states(2)
    error, size, count = 0.0, 0.0, 0
    for text in range(3):
        for token in range(4):
            if not MASK[text, token]:
                continue
            for unit in range(5):
                error += float(student[text, token, unit] - teacher[text, token, unit]) ** 2
                size += float(teacher[text, token, unit]) ** 2
                count += 1
    assert count == 8 * 5
    found = hidden_state_loss(student, teacher, MASK)
    assert float(found) == pytest.approx((error / count) / (size / count), rel=1e-12)
    # A weight means the same, however large the states are.
    assert float(hidden_state_loss(100 * student, 100 * teacher, MASK)) == pytest.approx(
        float(found), rel=1e-12
    )


def test_padding_counts_nothing():
    student, teacher = states(1), states(2)
    found = hidden_state_loss(student, teacher, MASK)
    student[~MASK], teacher[~MASK] = 1e9, float("nan")
    assert torch.equal(hidden_state_loss(student, teacher, MASK), found)


def test_the_term_and_its_gradient_vanish_where_both_agree():
    student = states(1).requires_grad_()
    loss = hidden_state_loss(student, states(1), MASK)
    loss.backward()
    assert loss.item() == 0
    assert student.grad is not None
    assert (student.grad == 0).all()


def test_a_teacher_in_half_precision_is_compared_in_the_student_s():
    student, teacher = states(1), states(2).half()
    found = hidden_state_loss(student, teacher, MASK)
    assert found.dtype == torch.float64
    assert torch.equal(found, hidden_state_loss(student, teacher.double(), MASK))
