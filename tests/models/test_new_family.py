"""A family is one entry of ``FAMILIES``: added there, every operation works on its models."""

import copy

import pytest
import torch

from lightning_compress.errors import InputError
from lightning_compress.models import (
    remove_heads_,
    remove_neurons_,
    set_masks_,
    structure_of,
    units_of,
)
from lightning_compress.models.families import FAMILIES, Family, Projections
from lightning_compress.models.forward import most_tokens
from lightning_compress.models.layers import remove_layers_, skipped
from lightning_compress.models.masks import masks_of
from lightning_compress.models.structure import linear_at
from lightning_compress.pruning.magnitude import magnitude_masks, prunable_weights
from lightning_compress.saving import load_compressed, save_compressed
from lightning_compress.substitution.edit import substitute_layers_

from ..families import POSITIONS, randomize_, tiny_model

IDS = torch.arange(2, 26).reshape(3, 8)
NEW = {
    "xlm-roberta-xl": Family(
        blocks="encoder.layer.*",
        heads=Projections(
            inputs=("attention.self.query", "attention.self.key", "attention.self.value"),
            output="attention.output.dense",
        ),
        neurons=Projections(inputs=("intermediate.dense",), output="output.dense"),
        attention="attention.self",
        head_size="attention_head_size",
        counts={"num_attention_heads": "heads", "all_head_size": "width"},
        norm_first=True,
        substitutable=True,
    ),
    "opt": Family(
        blocks="decoder.layers.*",
        heads=Projections(
            inputs=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            output="self_attn.out_proj",
        ),
        neurons=Projections(inputs=("fc1",), output="fc2"),
        attention="self_attn",
        head_size="head_dim",
        counts={"num_heads": "heads"},
        inner="ffn_dim",
        norm_first=True,
        causal=True,
    ),
}
REMOVE = {"heads": remove_heads_, "neurons": remove_neurons_}
REMOVED = {"heads": {0: [1, 3], 1: [0]}, "neurons": {0: [0, 5, 63], 1: list(range(1, 64, 2))}}


@pytest.fixture(params=list(NEW))
def new_family(request, monkeypatch):
    assert request.param not in FAMILIES
    monkeypatch.setitem(FAMILIES, request.param, NEW[request.param])
    return request.param


def logits(model):
    with torch.inference_mode():
        return model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits


def zero_outgoing_(model, kind, removed):
    for layer, chosen in removed.items():
        units = units_of(model, kind)[layer]
        columns = linear_at(model, units.output).weight.data
        width = columns.shape[1] // units.count
        for unit in chosen:
            columns[:, unit * width : (unit + 1) * width] = 0


def test_structure_and_longest_sequence(new_family):
    model = tiny_model(new_family)
    structure = structure_of(model)
    assert len(structure.layers) == 2
    assert structure.blocks == structure.layers
    assert len(structure.linear_names()) == 2 * 6
    assert [units.count for units in units_of(model, "heads")] == [4, 4]
    assert [units.count for units in units_of(model, "neurons")] == [64, 64]
    # The padding index is 0, and all but OPT count positions from 1.
    longest = {"opt": POSITIONS}.get(new_family, POSITIONS - 1)
    assert most_tokens(model) == longest
    ids = torch.full((1, longest), 5)
    assert model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.isfinite().all()


@pytest.mark.parametrize("kind", REMOVE)
def test_removed_units_equal_units_with_zero_weights(new_family, kind):
    model = randomize_(tiny_model(new_family))
    expected, dense = copy.deepcopy(model), logits(model)
    zero_outgoing_(expected, kind, REMOVED[kind])
    REMOVE[kind](model, REMOVED[kind])
    assert torch.allclose(logits(model), logits(expected), rtol=0, atol=1e-5)
    assert not torch.allclose(logits(model), dense, rtol=0, atol=1e-3)


def test_a_removed_layer_equals_a_skipped_one(new_family):
    model = randomize_(tiny_model(new_family))
    dense = copy.deepcopy(model)
    remove_layers_(model, [0])
    assert len(structure_of(model).layers) == model.config.num_hidden_layers == 1
    with skipped(dense, [0]):
        assert torch.allclose(logits(model), logits(dense), atol=1e-5)


def test_a_pruned_model_is_saved_and_loaded(new_family, tmp_path):
    model = randomize_(tiny_model(new_family, num_hidden_layers=3))
    parameters = dict(model.named_parameters())
    weights = {name: parameters[name] for name in prunable_weights(model, None)}
    set_masks_(model, magnitude_masks(weights, 0.5))
    for kind, remove_ in REMOVE.items():
        remove_(model, REMOVED[kind])
    remove_layers_(model, [1])
    loaded = load_compressed(save_compressed(model, tmp_path / "model"))
    assert torch.equal(logits(loaded), logits(model))
    masks = masks_of(loaded)
    assert masks.keys() == masks_of(model).keys()
    assert len(masks) == len(structure_of(model).linear_names())
    assert all(torch.equal(masks[name], mask) for name, mask in masks_of(model).items())


def test_layers_are_substituted_where_the_entry_allows_it(new_family, tmp_path):
    model = randomize_(tiny_model(new_family, num_hidden_layers=3))
    if not NEW[new_family].substitutable:
        with pytest.raises(InputError, match="cannot be made narrow"):
            substitute_layers_(model, [[1]], width=16)
        return
    substitute_layers_(model, [[1]], width=16)
    randomize_(model, seed=3)
    loaded = load_compressed(save_compressed(model, tmp_path / "model"))
    assert torch.equal(logits(loaded), logits(model))
