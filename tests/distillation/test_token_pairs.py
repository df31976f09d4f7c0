import pytest
import torch

from lightning_compress.distillation.attention import pair_divergence

MASK = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]]).bool()


def scores(*shape, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("causal", [False, True])
def test_it_is_the_mean_divergence_over_heads_and_tokens(slow_pairs, causal):
    student, teacher = scores(3, 2, 5, 5), scores(3, 2, 5, 5, seed=2)
    found = pair_divergence(student, teacher, MASK, causal=causal)
    expected = slow_pairs(student, teacher, MASK, causal=causal)
    assert float(found) == pytest.approx(expected, rel=1e-12)
    assert expected > 0.1


def test_holes_in_a_text_are_padding_too(slow_pairs):
    student, teacher = scores(2, 2, 5, 5).requires_grad_(), scores(2, 2, 5, 5, seed=2)
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 0, 1, 1, 0]]).bool()
    for causal in (False, True):
        found = pair_divergence(student, teacher, mask, causal=causal)
        expected = slow_pairs(student, teacher, mask, causal=causal)
        assert found.item() == pytest.approx(expected, rel=1e-12)
        # even of the first token of the first text, which sees nothing where all is causal
        (gradient,) = torch.autograd.grad(found, student)
        assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("causal", [False, True])
def test_what_is_not_seen_gets_no_gradient_and_does_no_harm(causal, dtype):
    student = scores(3, 2, 5, 5).to(dtype).requires_grad_()
    pair_divergence(student, scores(3, 2, 5, 5, seed=2), MASK, causal=causal).backward()
    seen = (MASK[:, None, :, None] & MASK[:, None, None, :]).expand(3, 2, 5, 5)
    if causal:
        seen = seen & torch.ones(5, 5).bool().tril()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert (student.grad[~seen] == 0).all()
    assert (student.grad[1][seen[1]] != 0).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_close_and_finite(dtype):
    # Scores far from zero: what is masked must not become infinite.
    student, teacher = (40 + scores(3, 2, 5, 5, seed=seed).to(dtype) for seed in (1, 2))
    found = pair_divergence(student, teacher, MASK, causal=True)
    exact = pair_divergence(student.double(), teacher.double(), MASK, causal=True)
    assert float(found) == pytest.approx(float(exact), rel=5e-2)
