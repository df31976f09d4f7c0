"""The loss against slow loops."""

import math

import pytest
import torch
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel

from lightning_compress.tasks import task_named
from lightning_compress.types import ProblemType


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def slow_cross_entropy(logits: list[float], target: int) -> float:
    return math.log(sum(math.exp(value) for value in logits)) - logits[target]


def test_single_label_is_mean_cross_entropy() -> None:
    logits, labels = torch.randn(5, 3), torch.tensor([0, 2, 1, 1, 0])
    expected = (
        sum(slow_cross_entropy(r.tolist(), int(t)) for r, t in zip(logits, labels, strict=True)) / 5
    )
    loss = task_named("sequence-classification", "single_label_classification").loss(logits, labels)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_regression_does_not_broadcast_the_trailing_one() -> None:
    logits, labels = torch.randn(6, 1), torch.randn(6)
    expected = (
        sum((a.item() - b.item()) ** 2 for a, b in zip(logits[:, 0], labels, strict=True)) / 6
    )
    loss = task_named("sequence-classification", "regression").loss(logits, labels)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_multi_label_is_mean_binary_cross_entropy() -> None:
    logits, labels = torch.randn(4, 3), torch.randint(2, (4, 3))
    expected = 0.0
    pairs = zip(logits.flatten().tolist(), labels.flatten().tolist(), strict=True)
    for logit, label in pairs:
        chance = 1 / (1 + math.exp(-logit))
        expected -= math.log(chance if label else 1 - chance) / 12
    loss = task_named("sequence-classification", "multi_label_classification").loss(logits, labels)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


KINDS: dict[ProblemType, tuple[torch.Tensor, float]] = {
    "single_label_classification": (torch.tensor([0, 2, 1, 1, 0, 2, 1]), -100),
    "regression": (torch.linspace(-2, 3, 7), math.nan),
    "multi_label_classification": ((torch.arange(21).reshape(7, 3) % 4 > 1).float(), math.nan),
}


def logits_for(kind: ProblemType) -> torch.Tensor:
    return torch.randn(7, 1 if kind == "regression" else 3, requires_grad=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gone", [[0], [6], [1, 2, 5], [0, 1, 2, 3, 4, 6]])
def test_rows_without_a_label_do_not_count(kind: ProblemType, gone: list[int]) -> None:
    (labels, missing), logits = KINDS[kind], logits_for(kind)
    labels = labels.clone()
    labels[gone] = missing
    kept = [row for row in range(7) if row not in gone]
    task = task_named("sequence-classification", kind)
    assert task.target_mask(labels).nonzero().flatten().tolist() == kept
    rows = [task.loss(logits[row : row + 1], labels[row : row + 1]) for row in kept]
    expected = sum(rows[1:], start=rows[0]) / len(kept)
    loss = task.loss(logits, labels)
    (found,) = torch.autograd.grad(loss, logits)
    (gradient,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(found, gradient)
    assert not found[gone].any()


@pytest.mark.parametrize("kind", KINDS)
def test_without_any_label_loss_and_gradients_are_zero(kind: ProblemType) -> None:
    (labels, missing), logits = KINDS[kind], logits_for(kind)
    none = torch.full_like(labels, missing)
    loss = task_named("sequence-classification", kind).loss(logits.bfloat16(), none)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert (loss.item(), loss.dtype, loss.shape) == (0.0, torch.float32, ())
    assert torch.equal(gradient, torch.zeros(7, logits.shape[1]))


@pytest.mark.parametrize("kind", KINDS)
def test_with_all_labels_the_loss_is_that_of_torch_bit_for_bit(kind: ProblemType) -> None:
    labels, logits = KINDS[kind][0], logits_for(kind)
    plain = {
        "single_label_classification": functional.cross_entropy,
        "regression": lambda logits, wanted: functional.mse_loss(logits[:, 0], wanted),
        "multi_label_classification": functional.binary_cross_entropy_with_logits,
    }[kind](logits, labels)
    loss = task_named("sequence-classification", kind).loss(logits, labels)
    assert torch.equal(loss, plain)
    assert torch.equal(*(torch.autograd.grad(one, logits)[0] for one in (loss, plain)))


def test_integers_of_a_regression_are_all_labels() -> None:
    labels = torch.tensor([-100, 1])
    assert task_named("sequence-classification", "regression").target_mask(labels).all()
    loss = task_named("sequence-classification", "regression").loss(torch.zeros(2, 1), labels)
    assert loss.item() == pytest.approx(5000.5)


@pytest.mark.parametrize("task", ["causal-lm", "masked-lm"])
def test_language_model_loss_is_a_mean_over_tokens_shifted_once(task: str) -> None:
    logits = torch.randn(3, 6, 11)
    labels = torch.randint(11, (3, 6))
    labels[0, 3:] = -100
    labels[2, 1] = -100
    total, count = 0.0, 0
    for row in range(3):
        for place in range(6):
            source = place - 1 if task == "causal-lm" else place
            if source >= 0 and labels[row, place] != -100:
                total += slow_cross_entropy(logits[row, source].tolist(), int(labels[row, place]))
                count += 1
    loss = task_named(task).loss(logits, labels)
    assert loss.item() == pytest.approx(total / count, rel=1e-5)


def test_causal_loss_equals_that_of_transformers() -> None:
    config = GPT2Config(
        vocab_size=20, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    model = GPT2LMHeadModel(config).eval()
    tokens = torch.randint(20, (2, 7))
    out = model(input_ids=tokens, labels=tokens)
    assert task_named("causal-lm").loss(out.logits, tokens).item() == pytest.approx(out.loss.item())


def test_loss_is_float32_under_bf16_and_zero_when_nothing_is_to_be_predicted() -> None:
    logits = torch.randn(2, 4, 5, dtype=torch.bfloat16, requires_grad=True)
    loss = task_named("masked-lm").loss(logits, torch.full((2, 4), -100))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.dtype == torch.float32
    assert loss.item() == 0.0
    assert not gradient.any()
