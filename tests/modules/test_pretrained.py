from typing import Any

import pytest
import torch
from transformers import BertForMaskedLM

from lightning_compress.errors import InputError
from lightning_compress.modules.pretrained import build_model
from lightning_compress.saving import save_compressed
from lightning_compress.tasks import task_named


def build(task="sequence-classification", **changes):
    options: dict[str, Any] = {"pretrained": None, "config": None, "new_head": False}
    options |= {"labels": {}, "vocabulary": {}, "task": task_named(task)}
    return build_model(**{**options, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, r"there is no model.*model\.pretrained"),
        ({"config": {"model_type": "bert"}}, r"model\.config\.vocab_size"),
        ({"config": {"model_type": "bird", "vocab_size": 9}}, r"model\.config does not work.*bird"),
        (
            {"config": {"model_type": "bert", "vocab_size": 9, "hidden_size": 7}},
            r"model\.config does not work.*7.*multiple",
        ),
        ({"pretrained": "a/b", "config": {"model_type": "bert"}}, "give one of them"),
        (
            {"config": {"model_type": "bert", "vocab_size": 9, "hidden_dropout": 0.1}},
            r"model\.config\.hidden_dropout: a BertConfig has no such field.*hidden_dropout_prob",
        ),
        ({"pretrained": "no/such-model"}, r"model\.pretrained.*'no/such-model'.*online"),
    ],
)
def test_what_cannot_be_built_is_named(changes, message):
    with pytest.raises(InputError, match=message):
        build(**changes)


def test_a_new_head_is_announced_and_missing_weights_are_a_warning(
    tiny_bert, tmp_path, capsys, recwarn
):
    BertForMaskedLM(tiny_bert.config).save_pretrained(tmp_path / "encoder")
    capsys.readouterr()
    model = build(pretrained=str(tmp_path / "encoder"))
    assert not recwarn.list
    state = {k: v for k, v in tiny_bert.state_dict().items() if "word_embeddings" not in k}
    tiny_bert.save_pretrained(tmp_path / "partial", state_dict=state)
    with pytest.warns(UserWarning, match="lacks 1 tensors.*word_embeddings"):
        model = build(pretrained=str(tmp_path / "partial"))
    assert torch.equal(model.classifier.weight, tiny_bert.classifier.weight)


def test_changes_of_the_configuration_reach_a_pretrained_model(tiny_bert, tmp_path):
    tiny_bert.save_pretrained(tmp_path / "plain")
    save_compressed(tiny_bert, tmp_path / "compressed")
    for folder in ("plain", "compressed"):
        model = build(pretrained=str(tmp_path / folder), config={"hidden_dropout_prob": 0.3})
        assert model.bert.encoder.layer[0].output.dropout.p == 0.3


def test_fields_that_only_the_model_reads_are_known():
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 9}
    fields = {"relative_attention": True, "position_buckets": 4, "norm_rel_ebd": "layer_norm"}
    model = build(config={"model_type": "deberta-v2", "num_hidden_layers": 1, **sizes, **fields})
    assert model.config.position_buckets == 4


def test_unknown_fields_of_a_pretrained_configuration_are_refused(tiny_bert, tmp_path):
    tiny_bert.save_pretrained(tmp_path / "plain")
    save_compressed(tiny_bert, tmp_path / "compressed")
    for folder in ("plain", "compressed"):
        with pytest.raises(InputError, match=r"model\.config\.dropuot: a BertConfig has no such"):
            build(pretrained=str(tmp_path / folder), config={"dropuot": 0.3})


def test_a_compressed_folder_keeps_its_task(tiny_bert, tmp_path):
    save_compressed(tiny_bert, tmp_path / "m")
    assert build(pretrained=str(tmp_path / "m")).num_labels == 2
    with pytest.raises(InputError, match=r"does not do masked-lm.*model\.task"):
        build(pretrained=str(tmp_path / "m"), task="masked-lm")


def test_half_precision_weights_train_in_float32(tiny_bert, tmp_path):
    tiny_bert.to(torch.bfloat16).save_pretrained(tmp_path / "m")
    assert {p.dtype for p in build(pretrained=str(tmp_path / "m")).parameters()} == {torch.float32}
