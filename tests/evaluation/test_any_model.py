"""Models of any kind are measured: bare encoders, several outputs, images; or refused in a line."""

from typing import Any

import pytest
import torch
import transformers
from transformers import ASTConfig, BertConfig, T5Config, ViTConfig

from lightning_compress import export_model, measure_footprint, measure_latency
from lightning_compress.errors import InputError

BERT = BertConfig(vocab_size=100, hidden_size=32, num_hidden_layers=1, num_attention_heads=4,
                  intermediate_size=64, max_position_embeddings=32)  # fmt: skip
T5 = T5Config(vocab_size=100, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4)  # fmt: skip
VIT = ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64,
                image_size=8, patch_size=4)  # fmt: skip
AUDIO = ASTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64,
                  num_mel_bins=16, max_length=32)  # fmt: skip
IDS = torch.arange(2, 26).reshape(3, 8)
TEXTS = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "labels": torch.zeros(3)}
IMAGES = {"pixel_values": torch.ones(3, 3, 8, 8)}
BOTH = {**TEXTS, "decoder_input_ids": IDS}
MODELS = [
    ("BertModel", BERT, TEXTS),
    ("BertForQuestionAnswering", BERT, TEXTS),
    ("BertForPreTraining", BERT, TEXTS),
    ("BertForTokenClassification", BERT, TEXTS),
    ("T5EncoderModel", T5, TEXTS),
    ("T5ForConditionalGeneration", T5, BOTH),
    ("ViTModel", VIT, IMAGES),
    ("ViTForImageClassification", VIT, IMAGES),
]


def _built(name: str, config: Any) -> Any:
    return getattr(transformers, name)(config)


@pytest.mark.parametrize(("name", "config", "batch"), MODELS, ids=[name for name, *_ in MODELS])
def test_any_model_is_measured(name: str, config: Any, batch: dict[str, torch.Tensor]) -> None:
    model = _built(name, config)
    one = {key: value[:1] for key, value in batch.items()}
    found = measure_footprint(model, batch)
    assert found.macs == measure_footprint(model, one).macs > 1000
    assert found.parameters == sum(weight.numel() for weight in model.parameters())
    latency = measure_latency(model, batch, seconds=0.01)
    assert (latency.batch_size, latency.p50 > 0) == (3, True)
    assert model.training


@pytest.mark.parametrize(
    ("name", "config", "batch", "message"),
    [
        (
            "T5Model",
            T5,
            TEXTS,
            "T5Model cannot run on this batch, give it all inputs",
        ),
        ("ViTModel", VIT, TEXTS, "ViTModel cannot run on this batch, give it all inputs"),
        ("BertModel", BERT, IMAGES, "BertModel cannot run .* takes none of .* pixel_values"),
    ],
)
def test_inputs_that_are_missing_are_named(
    name: str, config: Any, batch: dict[str, torch.Tensor], message: str
) -> None:
    model = _built(name, config)
    for measure in (measure_footprint, measure_latency):
        with pytest.raises(InputError, match=message):
            measure(model, batch)


@pytest.mark.parametrize(
    ("name", "config"),
    [("BertModel", BERT), ("BertForPreTraining", BERT), ("T5EncoderModel", T5)],
)
def test_what_has_no_logits_is_not_exported(name: str, config: Any, tmp_path: Any) -> None:
    with pytest.raises(InputError, match=f"{name} gives no logits: use a model"):
        export_model(_built(name, config).eval(), tmp_path / "e", "aotinductor", examples=[TEXTS])
    with pytest.raises(InputError, match="there are no examples to compare on"):
        export_model(_built(name, config).eval(), tmp_path / "e", "aotinductor", examples=[])
    assert not list(tmp_path.iterdir())


def test_what_needs_more_than_a_text_or_an_image_is_not_exported(tmp_path: Any) -> None:
    for name, config, message in (
        ("ASTForAudioClassification", AUDIO, "takes neither input_ids nor pixel_values"),
        ("ViTForImageClassification", VIT, "cannot run on this batch"),
        ("T5ForConditionalGeneration", T5, "cannot run on this batch"),
    ):
        with pytest.raises(InputError, match=message):
            export_model(_built(name, config), tmp_path / "e", "aotinductor", examples=[TEXTS])
