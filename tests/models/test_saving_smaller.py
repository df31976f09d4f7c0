"""Models with units and layers removed, saved and loaded elsewhere."""

import json

import pytest
import torch

from lightning_compress.compression_state import compression_state, restore_compression_
from lightning_compress.errors import InputError
from lightning_compress.models import manifest_of, remove_heads_, remove_neurons_, set_masks_
from lightning_compress.models.layers import remove_layers_
from lightning_compress.models.masks import masks_of
from lightning_compress.saving import load_compressed, save_compressed

from ..families import ALL, SLOW
from .conftest import IDS


def smaller(model):
    """Loses heads and neurons, and a layer where layers are blocks of their own."""
    if model.config.model_type != "albert":
        remove_layers_(model, [1])
    remove_heads_(model, {0: [0, 3]})
    remove_neurons_(model, {0: range(0, 64, 3)})
    return model


def logits(model):
    with torch.inference_mode():
        return model(input_ids=IDS).logits


@pytest.mark.slow
@pytest.mark.parametrize(
    "families", [[one for one in ALL if one not in SLOW], SLOW], ids=["fast", "slow"]
)
def test_every_family_loads_bit_equal_elsewhere_with_and_without_this_package(
    tiny_model, assert_same_elsewhere, families
):
    models = {family: smaller(tiny_model(family)) for family in families}
    models["modernbert-without-its-first"] = tiny_model("modernbert")
    remove_layers_(models["modernbert-without-its-first"], [0])
    assert_same_elsewhere(models)


@pytest.mark.parametrize("family", ALL)
def test_bytes_and_parameters_fall_and_the_manifest_tells_the_edits(tiny_model, family, tmp_path):
    dense = tiny_model(family)
    model = smaller(tiny_model(family))
    sizes = [
        next(save_compressed(one, tmp_path / name).glob("model*.safetensors")).stat().st_size
        for name, one in (("dense", dense), ("smaller", model))
    ]
    removed = sum(p.numel() for p in dense.parameters()) - sum(
        p.numel() for p in model.parameters()
    )
    assert removed > 0
    assert sizes[0] - sizes[1] >= 4 * removed
    loaded = load_compressed(tmp_path / "smaller")
    assert manifest_of(loaded) == manifest_of(model)
    assert type(loaded).__name__ == type(dense).__name__
    assert not (tmp_path / "dense" / "modeling_compressed.py").exists()


def test_a_model_without_some_layers_is_a_plain_hugging_face_model(tiny_bert, tmp_path):
    remove_layers_(tiny_bert, [0])
    folder = save_compressed(tiny_bert, tmp_path / "m")
    assert not (folder / "modeling_compressed.py").exists()
    assert torch.equal(logits(type(tiny_bert).from_pretrained(folder)), logits(tiny_bert))


def test_a_loaded_model_can_be_made_smaller_still_with_masks(tiny_bert, tmp_path):
    name = "bert.encoder.layer.0.output.dense.weight"
    set_masks_(tiny_bert, {name: torch.rand(32, 64) > 0.5})
    loaded = load_compressed(save_compressed(smaller(tiny_bert), tmp_path / "m"))
    remove_heads_(loaded, {0: [0]})
    again = load_compressed(save_compressed(loaded, tmp_path / "m"))
    assert torch.equal(logits(again), logits(loaded))
    assert torch.equal(masks_of(again)[name], masks_of(loaded)[name])
    assert (again.get_parameter(name) == 0)[~masks_of(again)[name]].all()
    assert [edit["edit"] for edit in manifest_of(again)].count("remove_heads") == 2


@pytest.mark.parametrize("family", ALL)
def test_any_model_takes_the_shapes_of_a_checkpoint_larger_or_smaller(tiny_model, family):
    dense, small = tiny_model(family), smaller(tiny_model(family))
    for source, target in ((small, tiny_model(family)), (dense, smaller(tiny_model(family)))):
        restore_compression_(target, compression_state(source))
        target.load_state_dict(source.state_dict())
        assert torch.equal(logits(target), logits(source))
        assert manifest_of(target) == manifest_of(source)
        assert target.config.num_hidden_layers == source.config.num_hidden_layers


def test_the_state_of_another_model_is_refused(tiny_model):
    state = compression_state(smaller(tiny_model("distilbert")))
    with pytest.raises(InputError, match="belongs to another model"):
        restore_compression_(tiny_model("bert"), state)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "model.compressed.safetensors").write_bytes(b"cut off"),
        lambda folder: (folder / "config.json").write_text("{"),
        lambda folder: (folder / "model.compressed.safetensors").unlink(),
        lambda folder: _change(folder, lambda sizes: sizes.popitem()),
        lambda folder: _change(folder, lambda sizes: sizes.update({"nowhere": {"nx": 3}})),
    ],
)
def test_a_damaged_folder_is_named(tiny_bert, tmp_path, damage):
    folder = save_compressed(smaller(tiny_bert), tmp_path / "m")
    damage(folder)
    with pytest.raises(
        InputError, match=r"m.* cannot be loaded, .* (damaged|other shapes|missing)"
    ):
        load_compressed(folder)


def _change(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config["compression"]["sizes"])
    (folder / "config.json").write_text(json.dumps(config))
