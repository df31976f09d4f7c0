import math

import pytest
import torch

from lightning_compress.distillation.hidden_states import embedding_loss
from lightning_compress.distillation.outputs import RequestedOutputs, run_with_outputs
from lightning_compress.models.sentence_embedding import mean_over_tokens


def embeddings(seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(4, 6, generator=generator, dtype=torch.float64)


def test_it_is_one_minus_the_cosine():
    student, teacher = embeddings(1), embeddings(2)
    losses = []
    for own, its in zip(student.tolist(), teacher.tolist(), strict=True):
        product = sum(a * b for a, b in zip(own, its, strict=True))
        sizes = [math.sqrt(sum(a * a for a in one)) for one in (own, its)]
        losses.append(1 - product / (sizes[0] * sizes[1]))
    found = embedding_loss(student, teacher)
    assert float(found) == pytest.approx(sum(losses) / 4, rel=1e-12)
    # Only the directions count.
    assert float(embedding_loss(3 * student, 0.1 * teacher)) == pytest.approx(float(found))
    assert float(embedding_loss(-teacher, teacher)) == pytest.approx(2)


def test_the_term_and_its_gradient_vanish_where_both_agree():
    student = embeddings(1).requires_grad_()
    loss = embedding_loss(student, embeddings(1))
    loss.backward()
    assert abs(loss.item()) < 1e-12
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-12


@pytest.mark.parametrize("family", ["bert", "albert", "gpt2", "llama"])
def test_an_embedding_is_the_mean_over_the_tokens_of_each_text_alone(
    with_random_weights, texts, family
):
    model = with_random_weights(family)
    with torch.no_grad():
        found = run_with_outputs(model, texts(), RequestedOutputs(embedding=True)).embedding
        assert found is not None
        for row, length in enumerate([4, 9, 6, 7]):
            ids = texts()["input_ids"][row : row + 1, :length]
            last = model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0]
            expected = sum(last[token] for token in range(length)) / length
            assert torch.allclose(found[row], expected, rtol=0, atol=1e-10)


def test_a_text_without_tokens_is_zero():
    states = torch.ones(1, 3, 2)
    assert mean_over_tokens(states, torch.zeros(1, 3)).tolist() == [[0, 0]]
