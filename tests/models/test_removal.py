import pytest
import torch

from lightning_compress.errors import InputError
from lightning_compress.models import (
    apply_masks_,
    manifest_of,
    remove_heads_,
    remove_neurons_,
    set_masks_,
    structure_of,
    units_of,
)
from lightning_compress.models.layers import remove_layers_
from lightning_compress.models.masks import masks_of
from lightning_compress.models.structure import output_dim

from ..families import ALL
from .conftest import logits, padded_batch

REMOVE = {"heads": remove_heads_, "neurons": remove_neurons_}
GONE = {"heads": {0: [1, 3], 1: [0]}, "neurons": {0: [0, 5, 63], 1: list(range(1, 64, 2))}}


def silence_(model, kind, gone):
    """The slow way: zero what the units say to the rest, one unit at a time."""
    for layer, chosen in gone.items():
        units = units_of(model, kind)[layer]
        output = model.get_submodule(units.output)
        columns = output.weight.data if output_dim(output) else output.weight.data.T
        width = len(columns) // units.count
        for unit in chosen:
            columns[unit * width : (unit + 1) * width] = 0


def for_family(family, kind):
    """The edit for a family; ALBERT has one block, which stands for all layers."""
    return {0: GONE[kind][0]} if family == "albert" else GONE[kind]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("kind", ["heads", "neurons"])
@pytest.mark.parametrize("family", ALL)
def test_a_removed_unit_is_a_silenced_one(tiny_model, family, kind, dtype, tolerance):
    model = tiny_model(family).to(dtype)
    silenced = tiny_model(family).to(dtype)
    before = sum(weight.numel() for weight in model.parameters())
    dense = logits(model)
    silence_(silenced, kind, for_family(family, kind))
    REMOVE[kind](model, for_family(family, kind))
    assert torch.allclose(logits(model), logits(silenced), rtol=0, atol=tolerance)
    assert not torch.allclose(logits(model), dense, rtol=0, atol=tolerance)
    assert sum(weight.numel() for weight in model.parameters()) < before
    for units in units_of(model, kind):
        gone = len(for_family(family, kind).get(units.layer, []))
        assert units.count == (4 if kind == "heads" else 64) - gone


@pytest.mark.parametrize("family", ALL)
def test_a_smaller_model_treats_examples_alone_and_ignores_padding(tiny_model, family):
    model = tiny_model(family)
    for kind in ("heads", "neurons"):
        REMOVE[kind](model, for_family(family, kind))
    together = logits(model)
    for row in range(3):
        alone = {name: value[row : row + 1] for name, value in padded_batch().items()}
        assert torch.allclose(logits(model, **alone)[0], together[row], atol=1e-6)
    longer = {
        name: torch.nn.functional.pad(value, (0, 5)) for name, value in padded_batch().items()
    }
    assert torch.allclose(logits(model, **longer), together, atol=1e-6)


@pytest.mark.parametrize("family", ALL)
def test_eager_sdpa_and_compiled_attention_agree(tiny_model, family):
    model = tiny_model(family)
    remove_heads_(model, for_family(family, "heads"))
    found = {}
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        found[implementation] = logits(model)
    assert torch.allclose(found["eager"], found["sdpa"], atol=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # torch's own
@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_a_compiled_smaller_model_says_the_same(tiny_model, family):
    model = tiny_model(family)
    remove_heads_(model, GONE["heads"])
    remove_neurons_(model, GONE["neurons"])
    expected = logits(model)
    assert torch.allclose(logits(torch.compile(model)), expected, atol=1e-5)


def test_masks_and_optimizer_moments_are_cut_alike(tiny_model):
    model = tiny_model("bert")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    parameters = dict(model.named_parameters())
    names = [f"{name}.weight" for name in structure_of(model).linear_names()]
    set_masks_(model, {name: parameters[name] > 0 for name in names}, technique="by_sign")
    model(**padded_batch(), labels=torch.tensor([0, 1, 0])).loss.backward()
    optimizer.step()
    apply_masks_(model)
    moments = {name: optimizer.state[weight]["exp_avg"] for name, weight in parameters.items()}
    masks = dict(masks_of(model))
    remove_neurons_(model, {0: [0, 2]}, optimizers=[optimizer])
    remove_heads_(model, {0: [1]}, optimizers=[optimizer])
    remove_layers_(model, [1], optimizers=[optimizer])

    smaller = dict(model.named_parameters())
    trained = [weight for group in optimizer.param_groups for weight in group["params"]]
    assert {id(weight) for weight in trained} == {id(weight) for weight in smaller.values()}
    kept = [row for row in range(64) if row not in (0, 2)]
    name = "bert.encoder.layer.0.intermediate.dense.weight"
    assert torch.equal(optimizer.state[smaller[name]]["exp_avg"], moments[name][kept])
    assert torch.equal(masks_of(model)[name], masks[name][kept])
    name = "bert.encoder.layer.0.attention.output.dense.weight"
    columns = [*range(8), *range(16, 32)]
    assert torch.equal(optimizer.state[smaller[name]]["exp_avg"], moments[name][:, columns])
    assert torch.equal(masks_of(model)[name], masks[name][:, columns])
    assert all(mask.shape == smaller[name].shape for name, mask in masks_of(model).items())
    assert [edit["technique"] for edit in manifest_of(model) if edit["edit"] == "mask_weights"] == [
        "by_sign"
    ]
    model(**padded_batch(), labels=torch.tensor([0, 1, 0])).loss.backward()
    optimizer.step()


@pytest.mark.parametrize(
    ("edit", "argument", "message"),
    [
        (remove_heads_, {2: [0]}, "no layer 2: they are counted from 0 to 1"),
        (remove_heads_, {0: [1], 1: [4]}, "layer 1 of .* has no head 4"),
        (remove_heads_, {0: [1], 1: [-1]}, "layer 1 of .* has no head -1"),
        (remove_heads_, {0: [1, 1]}, "head 1 of layer 0 of .* is given twice"),
        (remove_heads_, {0: [0], 1: [0, 1, 2, 3]}, "layer 1 .* lose all its 4 heads: keep"),
        (remove_neurons_, {0: range(64)}, "layer 0 .* lose all its 64 neurons: keep"),
        (remove_layers_, [0, 1], "lose all its 2 layers: keep"),
        (remove_layers_, [2], "has no layer 2"),
        (remove_layers_, [0, 0], "layer 0 of .* is given twice"),
    ],
)
def test_a_refused_edit_says_why_and_leaves_the_model_alone(tiny_bert, edit, argument, message):
    before = {name: weight.clone() for name, weight in tiny_bert.named_parameters()}
    with pytest.raises(InputError, match=message):
        edit(tiny_bert, argument)
    after = dict(tiny_bert.named_parameters())
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    assert manifest_of(tiny_bert) == []


def test_nothing_to_remove_is_no_edit(tiny_bert):
    remove_heads_(tiny_bert, {0: []})
    remove_neurons_(tiny_bert, {})
    remove_layers_(tiny_bert, [])
    assert manifest_of(tiny_bert) == []
