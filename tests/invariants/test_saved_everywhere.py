"""Every family with every edit, kept in every way, says the same afterwards or is refused."""

import copy
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import AutoModel, AutoModelForSequenceClassification

from lightning_compress import load_compressed, save_compressed
from lightning_compress.compression_state import compression_state, restore_compression_
from lightning_compress.errors import InputError
from lightning_compress.models import (
    manifest_of,
    masks_of,
    remove_heads_,
    remove_layers_,
    remove_neurons_,
    set_masks_,
    structure_of,
)
from lightning_compress.quantization import quantize_
from lightning_compress.quantization.qat import prepare_
from lightning_compress.substitution.edit import substitute_layers_

from ..families import ALL, randomize_, tiny_model

BATCH = {
    "input_ids": torch.arange(2, 26).reshape(3, 8),
    "attention_mask": (torch.arange(8) < torch.tensor([[8], [5], [7]])).long(),
}


def _mask_(model: Any) -> None:
    names = [f"{name}.weight" for name in structure_of(model).linear_names()]
    weights = dict(model.named_parameters())
    set_masks_(model, {name: weights[name].abs() > 0.15 for name in names})


def _shrink_(model: Any) -> None:
    remove_heads_(model, {0: [0, 3]})
    remove_neurons_(model, {0: range(0, 64, 2)})


def _shrink_and_quantize_(model: Any) -> None:
    _shrink_(model)
    quantize_(model, "int8-dynamic")


def _substitute_and_prune_(model: Any) -> None:
    substitute_layers_(model, [[1]], width=16)
    _mask_(model)
    remove_heads_(model, {0: [1]})


EDITS: dict[str, Callable[[Any], object]] = {
    "none": lambda model: None,
    "heads and neurons": _shrink_,
    "layers": lambda model: remove_layers_(model, [0]),
    "masks": _mask_,
    "substituted": lambda model: substitute_layers_(model, [[1]], width=16),
    "substituted and pruned": _substitute_and_prune_,
    "pruned and quantized": _shrink_and_quantize_,
    "int8-weight": lambda model: quantize_(model, "int8-weight"),
    "int8-static": lambda model: quantize_(model, "int8-static", calibration_batches=[BATCH]),
    "int4-weight": lambda model: quantize_(model, "int4-weight"),
    "prepared": lambda model: prepare_(model, "int8-dynamic"),
    "bf16": lambda model: quantize_(model, "bf16"),
    "fp16": lambda model: quantize_(model, "fp16"),
}
DTYPES = [torch.float32, torch.bfloat16]


def _checkpoint(model: Any, folder: Path) -> Any:
    saved = {"compression": compression_state(model), "state_dict": model.state_dict()}
    torch.save(saved, folder / "one.ckpt")
    loaded = torch.load(folder / "one.ckpt", weights_only=True)
    made = tiny_model(model.config.model_type, num_hidden_layers=3)
    for weight in made.parameters():
        weight.data = weight.data.to(model.dtype)
    restore_compression_(made, loaded["compression"])
    made.load_state_dict(loaded["state_dict"])
    return made


def _pretrained(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder / "plain")
    return folder / "plain"


def _pipeline(model: Any, folder: Path) -> Any:
    """The model in it: what else it does is text."""
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]")
    made: Any = transformers.pipeline(
        "text-classification", str(_pretrained(model, folder)), trust_remote_code=True,
        tokenizer=transformers.BertTokenizer(str(folder / "vocab.txt")), device="cpu",
    )  # fmt: skip
    return made.model


def _auto(auto: Any, **options: Any) -> Callable[[Any, Path], Any]:
    return lambda model, folder: auto.from_pretrained(_pretrained(model, folder), **options)


CODE = {"trust_remote_code": True}
SAME: dict[str, Callable[[Any, Path], Any]] = {
    "save_compressed": lambda m, folder: load_compressed(save_compressed(m, folder / "own")),
    "save_pretrained": lambda m, folder: load_compressed(_pretrained(m, folder)),
    "again": lambda m, f: load_compressed(_pretrained(load_compressed(_pretrained(m, f)), f / "a")),
    "deepcopy": lambda model, folder: copy.deepcopy(model),
    "pickle": lambda model, folder: pickle.loads(pickle.dumps(model)),
    "checkpoint": _checkpoint,
    "pipeline": _pipeline,
    "auto": _auto(AutoModelForSequenceClassification, **CODE),
}
BODY: dict[str, Callable[[Any, Path], Any]] = {
    "AutoModel": _auto(AutoModel, **CODE),
    "AutoModelForTokenClassification": _auto(transformers.AutoModelForTokenClassification, **CODE),
    "part": lambda m, folder: load_compressed(_pretrained(m.base_model, folder)),
}
WITHOUT_CODE: dict[str, Callable[[Any, Path], Any]] = {
    "AutoModelForSequenceClassification": _auto(AutoModelForSequenceClassification),
    "AutoModel": _auto(AutoModel),
    "own class": lambda m, folder: _auto(getattr(transformers, type(m).__name__))(m, folder),
}


def _logits(model: Any) -> Tensor:
    with torch.inference_mode():
        found: Tensor = model.eval()(**BATCH).logits
    return found


def _hidden(model: Any) -> Tensor:
    with torch.inference_mode():
        found: Tensor = model.eval().base_model(**BATCH)[0]
    return found


def _edited(family: str, edit: str, dtype: torch.dtype) -> Any:
    model: Any = randomize_(tiny_model(family, num_hidden_layers=3))
    for weight in model.parameters():  # buffers stay as they are when transformers loads it
        weight.data = weight.data.to(dtype)
    try:
        EDITS[edit](model)
    except InputError as error:
        pytest.skip(str(error))
    return model


def _assert_same_everywhere(family: str, edit: str, dtype: torch.dtype, folder: Path) -> None:
    model = _edited(family, edit, dtype)
    logits, hidden = _logits(model), _hidden(model)
    for way, keep in SAME.items():
        (folder / way).mkdir()
        kept = keep(model, folder / way)
        assert torch.equal(_logits(kept), logits), way
        if way not in ("pipeline", "auto") and edit != "prepared":
            assert manifest_of(kept) == manifest_of(model), way
            assert masks_of(kept).keys() == masks_of(model).keys(), way
    for way, keep in BODY.items():
        (folder / way).mkdir()
        try:
            kept = keep(model, folder / way)
        except InputError as error:  # a part that the model goes without
            if not re.search(r"2 tensors of \w+ are missing \(pooler", str(error)):
                raise
        else:
            assert torch.equal(_hidden(kept), hidden), way
    for way, keep in WITHOUT_CODE.items():
        try:
            kept = keep(model, folder)
        except OSError as error:
            if "no file named model.safetensors" not in str(error):
                raise
        else:
            assert torch.equal(_hidden(kept), hidden), way


@pytest.mark.parametrize(
    ("family", "edit", "dtype"),
    [
        ("bert", "pruned and quantized", torch.float32),
        ("distilbert", "substituted and pruned", torch.bfloat16),
        ("gpt2", "int8-static", torch.float32),
        ("roberta", "prepared", torch.float32),
        ("llama", "heads and neurons", torch.float32),
    ],
)
def test_a_sample_is_the_same_everywhere(
    family: str, edit: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    _assert_same_everywhere(family, edit, dtype, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("family", ALL)
def test_every_family_and_edit(family: str, edit: str, dtype: torch.dtype, tmp_path: Path) -> None:
    _assert_same_everywhere(family, edit, dtype, tmp_path)
