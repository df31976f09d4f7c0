import copy
from itertools import pairwise

import pytest
import torch
from torch.distributions import Categorical, kl_divergence
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM

from lightning_compress.models.layers import remove_layers_, skipped
from lightning_compress.pruning.layer_importance import (
    divergence_scores,
    influence_scores,
    select_layers,
)

from ..families import STACKED, randomize_
from .conftest import LENGTHS, calibration_of, padded_batch, padded_batches

SCORES = {"divergence": divergence_scores, "influence": influence_scores}


@pytest.fixture
def deep_model(tiny_model):
    def build(family, layers=4, seed=2, **changes):
        model = tiny_model(family, num_hidden_layers=layers, **changes)
        return randomize_(model, seed=seed, low=0.0, high=0.3).double()

    return build


def language_model():
    config = AutoConfig.for_model(
        "gpt2", vocab_size=100, n_embd=32, n_layer=3, n_head=4, n_positions=64, bos_token_id=1,
        eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    return randomize_(model, low=0.0, high=0.3).double()


def one_by_one():
    """The examples without any padding."""
    for lengths in LENGTHS:
        for row, length in enumerate(lengths):
            yield {"input_ids": padded_batch(lengths)["input_ids"][row : row + 1, :length]}


def logits(model, **inputs):
    with torch.no_grad():
        return model(**(inputs or padded_batch(LENGTHS[0]))).logits


def without(model, layers):
    smaller = copy.deepcopy(model)
    remove_layers_(smaller, layers)
    return smaller


def slow_divergence(model, layers):
    """Of a model that has lost these layers, example by example and token by token."""
    smaller, total = without(model, layers), 0.0
    for example in one_by_one():
        whole, less = logits(model, **example)[0], logits(smaller, **example)[0]
        if len(whole) == 1 and whole.dim() == 1:
            total += float((whole - less) ** 2)
            continue
        tokens = [(whole, less)] if whole.dim() == 1 else list(zip(whole, less, strict=True))
        nats = [kl_divergence(Categorical(logits=a), Categorical(logits=b)) for a, b in tokens]
        total += float(sum(nats)) / len(nats)
    return total / sum(map(len, LENGTHS))


def slow_influence(model):
    """Of all layers, from the hidden states between them, token by token."""
    model = copy.deepcopy(model)
    # The last hidden state is given after the decoders' last norm, which is no layer.
    for name in ("norm", "ln_f", "final_norm"):
        if hasattr(model.base_model, name):
            setattr(model.base_model, name, torch.nn.Identity())
    turns = []
    for example in one_by_one():
        with torch.no_grad():
            states = model(**example, output_hidden_states=True).hidden_states
        for token in range(example["input_ids"].shape[1]):
            ways = [functional.normalize(state[0, token], dim=0) for state in states]
            turns.append([1 - float(before @ after) for before, after in pairwise(ways)])
    return torch.tensor(turns, dtype=torch.float64).mean(0)


@pytest.mark.parametrize("layers", [[0], [3], [1, 2], [0, 1, 3]])
@pytest.mark.parametrize("family", STACKED)
def test_a_skipped_layer_is_a_removed_one(deep_model, family, layers):
    model = deep_model(family)
    dense = logits(model)
    with skipped(model, layers):
        assert torch.allclose(logits(model), logits(without(model, layers)), rtol=0, atol=1e-10)
        assert not torch.allclose(logits(model), dense, rtol=0, atol=1e-3)
    assert torch.equal(logits(model), dense)


def test_skipped_layers_are_restored_after_an_error(deep_model):
    model = deep_model("bert")
    dense = logits(model)

    def fail():
        with skipped(model, [0, 2]):
            raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="out of luck"):
        fail()
    assert torch.equal(logits(model), dense)
    for name in ("divergence", "influence"):
        SCORES[name](model, calibration_of(model, padded_batches()), [1])
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("removed", [[], [2]])
@pytest.mark.parametrize("family", STACKED)
def test_divergence_is_what_the_predictions_lose(deep_model, family, removed):
    model = deep_model(family)
    scores = divergence_scores(model, calibration_of(model, padded_batches()), removed)
    assert scores.shape == (4,)
    for layer in range(4):
        if layer in removed:
            assert scores[layer] == torch.inf
        else:
            expected = slow_divergence(model, [*removed, layer])
            assert float(scores[layer]) == pytest.approx(expected, rel=1e-6)
            assert expected > 1e-6


def test_divergence_of_a_language_model_is_a_mean_over_each_example_s_tokens():
    model = language_model()
    scores = divergence_scores(model, calibration_of(model, padded_batches()))
    expected = [slow_divergence(model, [layer]) for layer in range(3)]
    assert scores.tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_divergence_of_a_single_number_is_its_squared_difference(deep_model, family):
    model = deep_model(family, num_labels=1)
    scores = divergence_scores(model, calibration_of(model, padded_batches()))
    expected = [slow_divergence(model, [layer]) for layer in range(4)]
    assert scores.tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("removed", [[], [2], [3, 0]])
@pytest.mark.parametrize("family", STACKED)
def test_influence_is_how_far_hidden_states_turn(deep_model, family, removed):
    model = deep_model(family)
    scores = influence_scores(model, calibration_of(model, padded_batches()), removed)
    kept = [layer for layer in range(4) if layer not in removed]
    assert (scores[removed] == torch.inf).all()
    assert torch.allclose(scores[kept], slow_influence(without(model, removed)), rtol=1e-6)


def test_influence_is_known_for_a_language_model_too():
    model = language_model()
    scores = influence_scores(model, calibration_of(model, padded_batches()))
    assert torch.allclose(scores, slow_influence(model), rtol=1e-6)


def greedy(model, score, count):
    """Which layers go, by models that have lost them for good."""
    rest = list(range(6))
    chosen: list[int] = []
    for _ in range(count):
        if score == "divergence":
            losses = [slow_divergence(model, [*chosen, layer]) for layer in rest]
        else:
            losses = slow_influence(without(model, chosen)).tolist()
        chosen.append(rest.pop(losses.index(min(losses))))
    return chosen


@pytest.mark.parametrize("score", ["divergence", "influence"])
def test_layers_are_scored_again_after_each_choice(deep_model, score):
    differs = 0
    for seed in (1, 7):
        model = deep_model("bert", layers=6, seed=seed)
        chosen, rounds = select_layers(model, calibration_of(model, padded_batches()), 3, score)
        assert chosen == greedy(model, score, 3)
        for number, scores in enumerate(rounds):
            assert torch.equal(
                scores,
                SCORES[score](model, calibration_of(model, padded_batches()), chosen[:number]),
            )
            assert int(scores.argmin()) == chosen[number]
        differs += chosen != rounds[0].argsort()[:3].tolist()
    assert differs  # one round of scores would have chosen others


def test_score_last_selects_layers_from_the_end(deep_model):
    model = deep_model("bert", layers=6)
    chosen, rounds = select_layers(model, calibration_of(model, padded_batches()), 3, "last")
    assert chosen == [5, 4, 3]
    assert [scores.isinf().sum() for scores in rounds] == [0, 1, 2]
    assert select_layers(model, calibration_of(model, padded_batches()), 0, "last") == ([], [])


def test_random_layers_follow_torch_s_seed(deep_model):
    model = deep_model("bert", layers=6)
    found = []
    for seed in [*range(8), *range(8)]:
        torch.manual_seed(seed)
        chosen, _ = select_layers(model, calibration_of(model, padded_batches()), 5, "random")
        assert len(set(chosen)) == 5
        found.append(chosen)
    assert found[:8] == found[8:]
    assert {chosen[0] for chosen in found} > {found[0][0]}
