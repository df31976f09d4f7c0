import subprocess
import sys

import pytest
import torch

from lightning_compress.errors import InputError
from lightning_compress.models import manifest_of, set_masks_, structure_of
from lightning_compress.models.masks import masks_of
from lightning_compress.saving import load_compressed, restore_compression_, save_compressed

LOAD = """
import sys, torch
from lightning_compress import load_compressed
from lightning_compress.models import masks_of
model = load_compressed(sys.argv[1])
torch.manual_seed(0)
with torch.inference_mode():
    logits = model(input_ids=torch.randint(2, 100, (3, 8))).logits
torch.save({"logits": logits, "masks": masks_of(model)}, sys.argv[2])
"""


def prune_half(model):
    parameters = dict(model.named_parameters())
    names = [f"{name}.weight" for name in structure_of(model).linear_names()]
    set_masks_(
        model, {name: parameters[name].abs() > parameters[name].abs().median() for name in names}
    )


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_a_new_process_loads_the_same_model_masks_included(tiny_model, family, tmp_path):
    model = tiny_model(family)
    prune_half(model)
    save_compressed(model, tmp_path / "model")
    command = [sys.executable, "-c", LOAD, str(tmp_path / "model"), str(tmp_path / "out.pt")]
    subprocess.run(command, check=True, timeout=120)
    torch.manual_seed(0)
    with torch.inference_mode():
        logits = model(input_ids=torch.randint(2, 100, (3, 8))).logits
    loaded = torch.load(tmp_path / "out.pt")
    assert torch.equal(loaded["logits"], logits)
    assert loaded["masks"].keys() == masks_of(model).keys()
    for name, mask in masks_of(model).items():
        assert torch.equal(loaded["masks"][name], mask)


def test_dense_models_and_plain_hugging_face_folders_load_too(tiny_bert, tmp_path):
    tiny_bert.save_pretrained(tmp_path / "plain")
    plain = load_compressed(tmp_path / "plain")
    saved = load_compressed(save_compressed(tiny_bert, tmp_path / "saved"))
    for model in (plain, saved):
        assert manifest_of(model) == []
        assert not model.training
        for one, other in zip(model.parameters(), tiny_bert.parameters(), strict=True):
            assert torch.equal(one, other)


def test_there_is_no_pickle_in_the_folder(tiny_bert, tmp_path):
    prune_half(tiny_bert)
    names = {path.name for path in save_compressed(tiny_bert, tmp_path / "m").iterdir()}
    assert names == {"config.json", "model.safetensors", "masks.safetensors"}


def test_saving_again_replaces_the_model_and_a_failure_keeps_the_old_one(
    tiny_bert, tmp_path, monkeypatch
):
    folder = save_compressed(tiny_bert, tmp_path / "m")
    prune_half(tiny_bert)
    save_compressed(tiny_bert, folder)
    assert masks_of(load_compressed(folder)).keys() == masks_of(tiny_bert).keys()
    monkeypatch.setattr(
        type(tiny_bert), "save_pretrained", lambda *_: (_ for _ in ()).throw(OSError("disk full"))
    )
    with pytest.raises(OSError, match="disk full"):
        save_compressed(tiny_bert, folder)
    assert len(list(tmp_path.iterdir())) == 1
    assert masks_of(load_compressed(folder))


def test_a_folder_of_other_files_is_not_overwritten(tiny_bert, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="not a saved model"):
        save_compressed(tiny_bert, tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("damage", ["model.safetensors", "masks.safetensors", "config.json"])
def test_a_damaged_folder_is_named(tiny_bert, tmp_path, damage):
    prune_half(tiny_bert)
    file = save_compressed(tiny_bert, tmp_path / "m") / damage
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(InputError, match=f"{tmp_path.name}.*damaged"):
        load_compressed(tmp_path / "m")


def test_a_missing_folder_and_a_newer_format_are_named(tiny_bert, tmp_path):
    with pytest.raises(InputError, match=r"has no config\.json"):
        load_compressed(tmp_path / "nothing")
    with pytest.raises(InputError, match="has format 3, this version reads 2"):
        restore_compression_(tiny_bert, {"format": 3, "edits": [], "masks": {}})
