"""``export`` and ``benchmark`` take the model as its folder says it is."""

from pathlib import Path
from typing import Any

import pytest
import transformers
from transformers import AutoModelForMaskedLM, LlamaConfig

from lightning_compress.cli.saved_model import load_saved
from lightning_compress.errors import InputError
from lightning_compress.quantization import quantize_

from .families import tiny_config, tiny_language_model, tiny_model

HEADLESS = ("BertModel", "BertForPreTraining", "BertForMultipleChoice")


@pytest.mark.parametrize("name", HEADLESS)
@pytest.mark.parametrize("compressed", [False, True])
def test_a_model_for_something_else_is_refused(name: str, compressed: bool, tmp_path: Path) -> None:
    model: Any = getattr(transformers, name)(tiny_config("bert"))
    if compressed:
        quantize_(model, "int8-weight")
    model.save_pretrained(tmp_path)
    for task in (None, "sequence-classification"):
        with pytest.raises(InputError, match=f"{name} has no head of a supported task"):
            load_saved(str(tmp_path), task)


def test_a_head_of_the_same_names_is_not_taken_for_another(tmp_path: Path) -> None:
    config = tiny_config("llama")
    assert isinstance(config, LlamaConfig)
    model: Any = transformers.LlamaForTokenClassification(config)
    model.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="does token-classification and not sequence"):
        load_saved(str(tmp_path), "sequence-classification")


def test_the_architecture_decides_on_the_task(tmp_path: Path) -> None:
    masked = AutoModelForMaskedLM.from_config(tiny_config("bert"))
    for name, model in (("sequence-classification", tiny_model("bert")), ("masked-lm", masked),
                        ("causal-lm", tiny_language_model("gpt2"))):  # fmt: skip
        model.save_pretrained(tmp_path / name)
        for task in (None, name):
            loaded = load_saved(str(tmp_path / name), task)
            assert type(loaded) is type(model)
            assert not loaded.training
    with pytest.raises(InputError, match="is a BertForMaskedLM, which does masked-lm and not seq"):
        load_saved(str(tmp_path / "masked-lm"), "sequence-classification")


def test_a_missing_head_and_an_unknown_architecture_are_named(tmp_path: Path) -> None:
    model: Any = tiny_model("bert")
    model.base_model.save_pretrained(tmp_path)
    for architecture, message in (
        ("BertForSequenceClassification", r"2 tensors of .* are missing \(classifier\.bias"),
        ("BertForNothing", "unknown architecture: BertForNothing"),
    ):
        model.config.architectures = [architecture]
        model.config.save_pretrained(tmp_path)
        with pytest.raises(InputError, match=message):
            load_saved(str(tmp_path), None)
