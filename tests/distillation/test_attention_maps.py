import pytest
import torch

from lightning_compress.distillation.attention import _scores, attention_map_loss, check_heads
from lightning_compress.distillation.outputs import Attention, RequestedOutputs, run_with_outputs
from lightning_compress.errors import InputError
from lightning_compress.models import remove_heads_
from lightning_compress.models.families import FAMILIES as TABLE
from lightning_compress.models.layers import remove_layers_

from ..families import ALL, tiny_config

# Rotary embeddings change queries and keys after their projections.
FAMILIES = [
    family
    for family in ALL
    if not hasattr(tiny_config(family), "rope_parameters") and not TABLE[family].relative_scores
]
MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0]]).bool()
GONE = {0: [1, 3], 1: [0]}


def projections(heads, width, seed):
    generator = torch.Generator().manual_seed(seed)
    made = torch.randn(3, 3, 4, width, generator=generator, dtype=torch.float64)
    return Attention(made[0], made[1], made[2], heads)


def slow_scores(attention):
    texts, tokens, width = attention.query.shape
    size = width // attention.heads
    scores = torch.zeros(texts, attention.heads, tokens, tokens, dtype=torch.float64)
    for text in range(texts):
        for head in range(attention.heads):
            own = slice(head * size, (head + 1) * size)
            for token in range(tokens):
                for other in range(tokens):
                    query, key = attention.query[text, token, own], attention.key[text, other, own]
                    scores[text, head, token, other] = query @ key / size**0.5
    return scores


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("widths", [(6, 6), (6, 12)])
def test_it_is_the_divergence_of_each_head_from_its_own(slow_pairs, causal, widths):
    student, teacher = projections(3, widths[0], 1), projections(3, widths[1], 2)
    found = attention_map_loss(student, teacher, MASK, causal=causal)
    expected = slow_pairs(slow_scores(student), slow_scores(teacher), MASK, causal=causal)
    assert float(found) == pytest.approx(expected, rel=1e-12)


def real_attention(model, batch):
    """Of each layer [B, A, S, S], as the model itself computes it."""
    model.set_attn_implementation("eager")
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        return model(**inputs, output_attentions=True).attentions


def from_projections(attention, mask, causal):
    scores = _scores(attention).masked_fill(~mask[:, None, None, :], -torch.inf)
    if causal:
        scores = scores.masked_fill(~torch.ones_like(scores[0, 0]).bool().tril(), -torch.inf)
    return scores.softmax(-1)


def assert_it_is_the_real_attention(model, batch):
    layers = model.config.num_hidden_layers
    with torch.no_grad():
        found = run_with_outputs(model, batch, RequestedOutputs(attention=frozenset(range(layers))))
    real = real_attention(model, batch)
    assert found.attention.keys() == set(range(layers))
    assert len(real) == layers
    tokens = batch["attention_mask"].bool()
    for layer, expected in enumerate(real):
        causal = model.config.model_type == "gpt2"
        computed = from_projections(found.attention[layer], tokens, causal)
        computed, expected = (one.transpose(1, 2)[tokens] for one in (computed, expected))
        assert computed.shape == expected.shape
        assert torch.allclose(computed, expected, rtol=0, atol=1e-12)
        before = real[layer - 1].transpose(1, 2)[tokens]
        if computed.shape == before.shape and layers > 1:
            assert not torch.allclose(computed, before, rtol=0, atol=1e-3)


@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_maps_are_those_of_the_model_itself(with_random_weights, texts, family, pruned):
    model = with_random_weights(family)
    if pruned:
        remove_heads_(model, {0: GONE[0]} if family == "albert" else GONE)
    assert_it_is_the_real_attention(model, texts())


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_layers_are_renumbered_after_a_removal(with_random_weights, texts, family):
    model = with_random_weights(family, num_hidden_layers=3)
    whole = real_attention(model, texts())
    remove_layers_(model, [0])
    assert_it_is_the_real_attention(model, texts())
    assert not torch.allclose(real_attention(model, texts())[0], whole[0], atol=1e-3)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_layers_of_an_albert_with_several_blocks_are_distinct(with_random_weights, texts, groups):
    model = with_random_weights("albert", num_hidden_layers=4, num_hidden_groups=groups)
    assert_it_is_the_real_attention(model, texts())


def test_other_numbers_of_heads_are_refused_with_the_remedy():
    with pytest.raises(InputError, match=r"student has 2 heads.*teacher 3; use losses\.relations"):
        attention_map_loss(projections(2, 6, 1), projections(3, 6, 2), MASK, causal=False)
    check_heads(3, 3)
