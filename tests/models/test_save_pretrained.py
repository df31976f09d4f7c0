"""transformers' own ways to save and to load a compressed model are right, or refused."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    EncoderDecoderModel,
    ViTConfig,
    ViTForImageClassification,
)

from lightning_compress.errors import InputError
from lightning_compress.models import manifest_of, remove_heads_, remove_layers_
from lightning_compress.quantization import quantize_
from lightning_compress.saving import load_compressed, save_compressed
from lightning_compress.substitution.edit import substitute_layers_

from ..families import tiny_config
from .conftest import logits


def _bert_config():
    config = tiny_config("bert")
    assert isinstance(config, BertConfig)
    return config


def _weights(folder):
    return next(folder.glob("model*.safetensors"))


EDITS = {
    "dense": lambda model: None,
    "layers": lambda model: remove_layers_(model, [1]),
    "heads": lambda model: remove_heads_(model, {0: [1]}),
    "int8": lambda model: quantize_(model, "int8-weight"),
}
TENSOR = "bert.embeddings.LayerNorm.weight"


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop(TENSOR), f"1 tensors of Bert.* are missing .{TENSOR}"),
        (
            lambda tensors: tensors.update({TENSOR: torch.ones(31)}),
            f"have other shapes .{TENSOR}",
        ),
        (
            lambda tensors: tensors.update({"bert.more": torch.ones(1)}),
            r"1 tensors .* too many \(bert\.more",
        ),
    ],
    ids=["missing", "other shape", "surplus"],
)
def test_a_file_of_other_tensors_is_refused(tiny_bert, tmp_path, edit, change, message):
    EDITS[edit](tiny_bert)
    folder = save_compressed(tiny_bert, tmp_path / "m")
    tensors = load_file(_weights(folder))
    change(tensors)
    save_file(tensors, _weights(folder), {"format": "pt"})
    with pytest.raises(InputError, match=message):
        load_compressed(folder)


def test_a_folder_of_transformers_without_its_head_is_refused(tiny_bert, tmp_path):
    tiny_bert.bert.save_pretrained(tmp_path)
    tiny_bert.config.architectures = ["BertForSequenceClassification"]
    tiny_bert.config.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"2 tensors of Bert.* are missing \(classifier\.bias"):
        load_compressed(tmp_path)


def test_save_pretrained_of_a_dense_model_is_that_of_transformers(tiny_model, tmp_path):
    remove_heads_(tiny_model("bert"), {0: [1]})
    tiny_model("bert").save_pretrained(tmp_path, variant="fp32")
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.fp32.safetensors"}
    assert "compression" not in (tmp_path / "config.json").read_text()


def test_save_pretrained_takes_the_options_of_transformers(tiny_bert, tmp_path):
    quantize_(tiny_bert, "int8-weight")
    tiny_bert.save_pretrained(tmp_path / "no", is_main_process=False)
    assert not (tmp_path / "no").exists()
    tiny_bert.save_pretrained(tmp_path / "m", True, max_shard_size="5KB")
    assert len(list((tmp_path / "m").glob("model.compressed-0000*-of-*.safetensors"))) > 2
    assert torch.equal(logits(load_compressed(tmp_path / "m")), logits(tiny_bert))
    loaded = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "m", trust_remote_code=True
    )
    assert torch.equal(logits(loaded), logits(tiny_bert))
    for option in ({"state_dict": tiny_bert.state_dict()}, {"push_to_hub": True}):
        with pytest.raises(InputError, match=f"has no {next(iter(option))}: leave it out"):
            tiny_bert.save_pretrained(tmp_path / "no", **option)


def test_a_model_of_which_a_part_was_compressed_is_refused(tiny_bert, tmp_path):
    quantize_(tiny_bert.bert, "int8-weight")
    for save in (tiny_bert.save_pretrained, lambda folder: save_compressed(tiny_bert, folder)):
        with pytest.raises(InputError, match=r"bert of Bert.* was compressed on its own"):
            save(tmp_path / "m")
    tiny_bert.bert.save_pretrained(tmp_path / "part")
    loaded = load_compressed(tmp_path / "part")
    assert manifest_of(loaded) == manifest_of(tiny_bert.bert)
    ids = torch.arange(2, 10)[None]
    assert torch.equal(loaded(ids)[0], tiny_bert.bert.eval()(ids)[0])
    pair = EncoderDecoderModel(encoder=loaded, decoder=AutoModelForCausalLM.from_config(
        tiny_config("bert", is_decoder=True, add_cross_attention=True)))  # fmt: skip
    with pytest.raises(InputError, match="encoder of EncoderDecoderModel was compressed"):
        pair.save_pretrained(tmp_path / "pair")


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_quantized_embeddings_are_no_output_of_another_head(tiny_model, tmp_path, family):
    model = tiny_model(family)
    quantize_(model, "int8-weight")
    model.save_pretrained(tmp_path)
    auto = AutoModelForMaskedLM if family == "bert" else AutoModelForCausalLM
    with pytest.raises(ValueError, match=r"load it as .*ForSequenceClassification"):
        auto.from_pretrained(tmp_path, trust_remote_code=True)


def test_a_bare_encoder_becomes_a_classifier_with_a_new_head(tmp_path):
    model = BertModel(_bert_config()).eval()
    quantize_(model, "int8-weight")
    substituted = BertModel(_bert_config()).eval()
    substitute_layers_(substituted, [[1]], width=16)
    ids = torch.arange(2, 10)[None]
    for name, one in (("quantized", model), ("substituted", substituted)):
        one.save_pretrained(tmp_path / name)
        made = AutoModelForSequenceClassification.from_pretrained(
            tmp_path / name, trust_remote_code=True
        )
        with torch.inference_mode():
            assert torch.equal(made.bert(ids)[0], one(ids)[0])


def test_a_model_whose_tensors_transformers_renames_in_its_files_loads_everywhere(tmp_path):
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64,
        image_size=8, patch_size=4,
    )  # fmt: skip
    model = ViTForImageClassification(config).eval()
    quantize_(model, "int8-weight")
    model.save_pretrained(tmp_path)
    pixels = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        states, expected = model.vit(pixels)[0], model(pixels).logits
        for auto in (AutoModelForImageClassification, AutoModel):
            loaded = auto.from_pretrained(tmp_path, trust_remote_code=True).eval()
            assert torch.equal(loaded(pixels)[0], states if auto is AutoModel else expected)
        assert torch.equal(load_compressed(tmp_path)(pixels).logits, expected)


def test_a_compressed_model_that_transformers_loaded_is_not_edited_further(tiny_bert, tmp_path):
    save_compressed(tiny_bert, tmp_path / "dense")
    again = BertForSequenceClassification.from_pretrained(tmp_path / "dense")
    remove_heads_(again, {0: [1]})
    again.save_pretrained(tmp_path / "heads")
    assert torch.equal(logits(load_compressed(tmp_path / "heads")), logits(again))
    loaded = AutoModel.from_pretrained(tmp_path / "heads", trust_remote_code=True)
    with pytest.raises(InputError, match="load it with load_compressed to edit it"):
        remove_heads_(loaded, {0: [1]})


class Own(BertForSequenceClassification):
    """A class of a person's own."""


def test_a_class_that_could_not_be_loaded_is_refused(tmp_path):
    model = Own(_bert_config())
    remove_layers_(model, [1])
    model.save_pretrained(tmp_path / "layers")
    assert torch.equal(logits(Own.from_pretrained(tmp_path / "layers")), logits(model.eval()))
    remove_heads_(model, {0: [1]})
    with pytest.raises(InputError, match="Own is no class of transformers"):
        model.save_pretrained(tmp_path / "m")
    assert not (tmp_path / "m").exists()
