import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightning_compress.compression_state import restore_compression_
from lightning_compress.errors import InputError
from lightning_compress.models import manifest_of, remove_heads_, set_masks_, structure_of
from lightning_compress.models.masks import masks_of
from lightning_compress.quantization import quantize_
from lightning_compress.saving import load_compressed, save_compressed

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


@pytest.mark.parametrize("family", ["bert", pytest.param("gpt2", marks=pytest.mark.slow)])
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


def test_other_files_of_the_folder_stay(tiny_bert, tmp_path):
    others = ["thesis.txt", "README.md", ".git/HEAD", "vocab.txt", "onnx/model.onnx"]
    for name in others:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"years of work on {name}")
    tiny_bert.save_pretrained(tmp_path)
    remove_heads_(tiny_bert, {0: [1]})
    for save in (
        lambda: save_compressed(tiny_bert, tmp_path),
        lambda: tiny_bert.save_pretrained(tmp_path),
    ):
        save()
        for name in others:
            assert (tmp_path / name).read_text() == f"years of work on {name}"
        assert manifest_of(load_compressed(tmp_path)) == manifest_of(tiny_bert)


@pytest.mark.parametrize("old", ["dense", "masked", "quantized", "pickled"])
@pytest.mark.parametrize("new", ["dense", "masked", "quantized"])
def test_nothing_of_an_older_model_is_left(tiny_model, tmp_path, old, new):
    """Not even of one in many files, which transformers would look for first or second."""

    def made(kind):
        model = tiny_model("bert")
        if kind == "masked":
            prune_half(model)
        if kind == "quantized":
            quantize_(model, "int8-weight")
        return model

    if old == "pickled":
        tiny_model("bert").config.save_pretrained(tmp_path / "m")
        torch.save({}, tmp_path / "m" / "pytorch_model.bin")
    else:
        made(old).save_pretrained(tmp_path / "m", max_shard_size="5KB")
        assert len(list((tmp_path / "m").glob("*-of-*.safetensors"))) > 2
    model = made(new)
    save_compressed(model, tmp_path / "m")
    save_compressed(model, tmp_path / "new")
    names = [sorted(path.name for path in (tmp_path / one).iterdir()) for one in ("m", "new")]
    assert names[0] == names[1]


def test_a_crash_while_files_are_replaced_leaves_no_mix(tiny_bert, tmp_path, monkeypatch):
    folder = save_compressed(tiny_bert, tmp_path / "m")
    remove_heads_(tiny_bert, {0: [1]})
    replace, calls = Path.replace, []

    def dying(self, target):
        calls.append(target)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", dying)
    with pytest.raises(KeyboardInterrupt):
        save_compressed(tiny_bert, folder)
    with pytest.raises(InputError, match=r"has no config\.json"):
        load_compressed(folder)


def test_a_file_is_no_folder(tiny_bert, tmp_path):
    (tmp_path / "m").write_text("")
    with pytest.raises(InputError, match="is a file: choose another name"):
        save_compressed(tiny_bert, tmp_path / "m")


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
