"""The proposed entry of a family is the one that a person wrote, or there is a reason for none."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch_pruning
from transformers import AutoConfig, AutoModel, PreTrainedConfig

from lightning_compress.errors import InputError
from lightning_compress.models import (
    propose_family,
    remove_heads_,
    remove_neurons_,
    structure_of,
    units_of,
)
from lightning_compress.models.families import FAMILIES, Family, Projections, UnitKind
from lightning_compress.pruning.gate_gradients import gated

from ..families import ALL, randomize_, tiny_model
from .test_new_family import NEW

SIZES = {
    "vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 64, "max_position_embeddings": 64, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
IDS = torch.arange(80, 89)[None]


def model_of(model_type, **options):
    config: PreTrainedConfig = AutoConfig.for_model(model_type, **SIZES, **options)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return randomize_(AutoModel.from_config(config))


def pasted(text):
    """The entries that Python code for the table has."""
    return eval(f"{{\n{text}}}", {"Family": Family, "Projections": Projections})


@pytest.fixture
def unknown(monkeypatch):
    """Takes the entry of a family out of the table, and gives it."""

    def take(model_type):
        entry = FAMILIES[model_type]
        monkeypatch.delitem(FAMILIES, model_type)
        return entry

    return take


@pytest.mark.parametrize("family", ALL)
def test_it_is_the_entry_of_a_known_family(family, unknown):
    model = tiny_model(family)
    entry = unknown(family)
    found = pasted(propose_family(model))
    assert found == {family: replace(entry, substitutable=False, fixed_by=())}


@pytest.mark.parametrize("model_type", NEW)
def test_it_is_the_entry_that_a_person_would_add(model_type, monkeypatch):
    monkeypatch.setitem(FAMILIES, model_type, NEW[model_type])  # what builds the model needs it
    model = tiny_model(model_type)
    monkeypatch.delitem(FAMILIES, model_type)
    found = pasted(propose_family(model))
    assert found == {model_type: replace(NEW[model_type], substitutable=False)}


@pytest.mark.parametrize(
    ("model_type", "options"),
    [("gemma2", {"num_key_value_heads": 2, "head_dim": 8}), ("roformer", {}), ("phi", {}),
     ("gpt_neo", {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]})],
)  # fmt: skip
def test_what_is_gated_is_what_is_removed(model_type, options, monkeypatch):
    if model_type == "gpt_neo":
        monkeypatch.delitem(SIZES, "num_hidden_layers")
        monkeypatch.delitem(SIZES, "num_attention_heads")
    model = model_of(model_type, **options).double()
    monkeypatch.setitem(FAMILIES, model_type, pasted(propose_family(model))[model_type])
    smaller, gates = copy.deepcopy(model), {}
    every: dict[UnitKind, dict[int, list[int]]] = {
        "heads": {0: [1], 1: [0]},
        "neurons": {0: [0, 5, 63], 1: [7]},
    }
    for kind, removed in every.items():
        for units in units_of(model, kind):
            gates[units.output] = torch.ones(units.count, dtype=torch.float64)
            gates[units.output][removed[units.layer]] = 0
    with torch.no_grad(), gated(model, gates):
        expected = model(IDS)[0]
    remove_heads_(smaller, {0: [1], 1: [0]})
    remove_neurons_(smaller, {0: [0, 5, 63], 1: [7]})
    with torch.no_grad():
        torch.testing.assert_close(smaller(IDS)[0], expected, rtol=0, atol=1e-10)
        assert not torch.allclose(model(IDS)[0], expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("model_type", ["bert", "distilbert", "electra", "roformer", "ernie"])
def test_torch_pruning_finds_the_same_layers_coupled(model_type, unknown):
    if model_type in FAMILIES:
        unknown(model_type)
    sizes = {} if model_type != "distilbert" else {"hidden_dim": 64}
    model = model_of(model_type, **sizes)
    entry = pasted(propose_family(model))[model_type]
    model.set_attn_implementation("eager")
    graph = torch_pruning.DependencyGraph().build_dependency(
        model, example_inputs={"input_ids": IDS}, output_transform=lambda output: output[0]
    )
    names = {module: name for name, module in model.named_modules()}
    for projections, rows in ((entry.heads, range(8)), (entry.neurons, [3])):
        block = entry.blocks.replace("*", "1")
        first = model.get_submodule(f"{block}.{projections.inputs[0]}")
        group = graph.get_pruning_group(first, torch_pruning.prune_linear_out_channels, list(rows))
        found: dict[str, set[Any]] = {"out": set(), "in": set()}
        for dependency, _ in group:
            module = dependency.target.module
            if isinstance(module, torch.nn.Linear):
                way = "out" if "out_channels" in dependency.handler.__name__ else "in"
                found[way].add(names[module])
        assert found["out"] == {f"{block}.{name}" for name in projections.inputs}
        assert found["in"] == {f"{block}.{projections.output}"}


@pytest.mark.parametrize(
    ("model_type", "options", "reason"),
    [
        ("gpt_neox", {}, "query_key_value .* fused in another way"),
        ("bart", {}, "an encoder and a decoder"),
        (
            "mixtral",
            {"num_key_value_heads": 4},
            "one behind its neurons, and has: self_attn.o_proj",
        ),
        ("olmo2", {"num_key_value_heads": 4}, "no attribute of Olmo2Attention has the size"),
        ("phi3", {"num_key_value_heads": 4}, "heads could not be removed"),
        ("fnet", {}, "one list of like layers, and has: none"),
        ("xmod", {}, "does not run on token ids alone .*language"),
        ("vit", {}, "reads no token ids"),
    ],
)
def test_the_reason_where_there_is_none(model_type, options, reason, unknown, monkeypatch):
    if model_type == "vit":
        unknown(model_type)
        monkeypatch.setattr(f"{__name__}.SIZES", {"hidden_size": 32, "num_attention_heads": 4})
    if model_type == "bart":
        monkeypatch.delitem(SIZES, "num_hidden_layers")
        options = {"encoder_layers": 2, "decoder_layers": 2}
    model, before = model_of(model_type, **options), dict(FAMILIES)
    with pytest.raises(InputError, match=reason) as caught:
        propose_family(model)
    message = str(caught.value)
    assert message.startswith(f"no family entry can be derived from {type(model).__name__}: ")
    assert "\n" not in message
    assert list(before.items()) == list(FAMILIES.items())


def test_the_model_stays_as_it_is(unknown):
    model = tiny_model("bert").train()
    unknown("bert")
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    propose_family(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(torch.get_rng_state(), state)
    assert "bert" not in FAMILIES


def test_dead_neurons_do_not_hide_what_belongs_together(unknown):
    model: Any = tiny_model("distilbert", activation="relu")
    entry = unknown("distilbert")
    with torch.no_grad():
        for layer in model.distilbert.transformer.layer:
            layer.ffn.lin1.bias.fill_(-100.0)
    assert pasted(propose_family(model))["distilbert"].neurons == entry.neurons


def test_a_layer_that_cannot_be_removed_is_remarked(unknown):
    fixed = "No layer can be removed (the model is not what it is without running"
    model = tiny_model("gpt2", scale_attn_by_inverse_layer_idx=True)
    usual = tiny_model("gpt2")
    unknown("gpt2")
    assert fixed in propose_family(randomize_(model))
    assert fixed not in propose_family(randomize_(usual))


def test_the_error_for_an_unknown_family_names_it(unknown):
    with pytest.raises(InputError, match=r"lightning_compress\.models\.propose_family\(model\)"):
        structure_of(model_of("roformer"))
