from math import gcd

import pytest
import torch

from lightning_compress.distillation.attention import _common_heads, relation_loss
from lightning_compress.distillation.outputs import Attention, RequestedOutputs, run_with_outputs
from lightning_compress.errors import InputError
from lightning_compress.models import remove_heads_

MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0]]).bool()


def projections(heads, widths, seed):
    generator = torch.Generator().manual_seed(seed)
    query, key, value = (
        torch.randn(3, 4, width, generator=generator, dtype=torch.float64) for width in widths
    )
    return Attention(query, key, value, heads)


def slow_relations(projection, heads):
    texts, tokens, width = projection.shape
    size = width // heads
    found = torch.zeros(texts, heads, tokens, tokens, dtype=torch.float64)
    for text in range(texts):
        for head in range(heads):
            own = slice(head * size, (head + 1) * size)
            for token in range(tokens):
                for other in range(tokens):
                    pair = projection[text, token, own], projection[text, other, own]
                    found[text, head, token, other] = pair[0] @ pair[1] / size**0.5
    return found


def slow_loss(slow_pairs, student, teacher, mask, causal, splits):
    terms = []
    for name, heads in zip(("query", "key", "value"), splits, strict=True):
        pair = [slow_relations(getattr(one, name).detach(), heads) for one in (student, teacher)]
        terms.append(slow_pairs(*pair, mask, causal=causal))
    return sum(terms) / 3


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("student", "teacher", "heads", "splits"),
    [
        ((3, [6, 6, 6]), (3, [6, 6, 6]), None, [3, 3, 3]),
        ((3, [6, 6, 6]), (3, [6, 6, 6]), 2, [2, 2, 2]),
        ((3, [6, 6, 6]), (3, [6, 6, 6]), 6, [6, 6, 6]),
        ((2, [8, 8, 8]), (4, [16, 16, 16]), None, [4, 4, 4]),  # other heads and widths
        ((3, [12, 12, 12]), (4, [16, 16, 16]), None, [4, 4, 4]),  # one of four heads is removed
        ((5, [5, 5, 5]), (4, [16, 16, 16]), None, [1, 1, 1]),
        ((6, [12, 6, 6]), (8, [16, 8, 8]), None, [4, 2, 2]),  # grouped queries
    ],
)
def test_it_is_the_mean_of_three_divergences(slow_pairs, student, teacher, heads, splits, causal):
    small, large = projections(student[0], student[1], 1), projections(teacher[0], teacher[1], 2)
    found = relation_loss(small, large, MASK, causal=causal, heads=heads)
    expected = slow_loss(slow_pairs, small, large, MASK, causal, splits)
    assert float(found) == pytest.approx(expected, rel=1e-12)
    assert expected > 1e-2


def test_relation_heads_are_the_most_that_divide_both_widths():
    for student in range(1, 25):
        for teacher in range(1, 25):
            for most in (1, 3, 12):
                fits = [
                    heads
                    for heads in range(1, most + 1)
                    if student % heads == 0 and teacher % heads == 0
                ]
                assert _common_heads(student, teacher, most) == max(fits)
                assert max(fits) <= gcd(student, teacher)


@pytest.mark.parametrize(
    ("family", "removed", "splits"),
    [("bert", [1], [4, 4, 4]), ("gpt2", [0, 2], [4, 4, 4]), ("llama", [3], [8, 4, 4])],
)
def test_a_student_without_some_of_its_heads_is_taught_by_one_with_all(
    with_random_weights, texts, slow_pairs, family, removed, splits
):
    student, teacher = with_random_weights(family), with_random_weights(family, seed=3)
    remove_heads_(student, {1: removed})
    wanted, mask = RequestedOutputs(attention=frozenset([1])), texts()["attention_mask"].bool()
    own, its = (run_with_outputs(one, texts(), wanted).attention[1] for one in (student, teacher))
    assert own.value.shape[-1] < its.value.shape[-1]
    found = relation_loss(own, its, mask, causal=family != "bert")
    expected = slow_loss(slow_pairs, own, its, mask, family != "bert", splits)
    assert found.item() == pytest.approx(expected, rel=1e-10)
    found.backward()
    block = student.base_model.get_submodule(
        {"bert": "encoder.layer.1", "gpt2": "h.1", "llama": "layers.1"}[family]
    )
    assert any(w.grad is not None and w.grad.abs().max() > 0 for w in block.parameters())


def test_heads_that_do_not_divide_a_width_are_refused():
    pair = projections(3, [6, 6, 6], 1), projections(4, [16, 16, 16], 2)
    with pytest.raises(InputError, match=r"losses\.relations\.heads: 3 heads .* a width of 16"):
        relation_loss(*pair, MASK, causal=False, heads=3)
    with pytest.raises(InputError, match=r"losses\.relations\.heads: 4 heads .* a width of 6"):
        relation_loss(*pair, MASK, causal=False, heads=4)
