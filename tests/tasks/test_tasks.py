"""Which task a model is for."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel, PreTrainedModel

from lightning_compress.errors import InputError
from lightning_compress.tasks import task_of
from lightning_compress.tasks.language_modeling import next_token_labels


def test_the_head_tells_the_task(tiny_model: Callable[..., PreTrainedModel]) -> None:
    masked = BertForMaskedLM(
        BertConfig(vocab_size=10, num_hidden_layers=1, hidden_size=8, num_attention_heads=1)
    )
    causal = GPT2LMHeadModel(
        GPT2Config(vocab_size=10, n_embd=8, n_layer=1, n_head=1, bos_token_id=0, eos_token_id=0)
    )

    class Mine(GPT2LMHeadModel):
        """A user's own subclass."""

    assert task_of(masked).name == "masked-lm"
    assert task_of(causal).name == "causal-lm"
    assert task_of(Mine(causal.config)).name == "causal-lm"
    for family in ("bert", "roberta", "distilbert", "electra", "gpt2"):
        assert task_of(tiny_model(family)).name == "sequence-classification"
    assert task_of(causal).problem_type is None


def test_a_model_without_a_known_head_is_refused(tiny_bert: PreTrainedModel) -> None:
    with pytest.raises(InputError, match="BertModel has no head of a supported task"):
        task_of(tiny_bert.base_model)
    with pytest.raises(InputError, match="Linear"):
        task_of(nn.Linear(2, 2))


def test_problem_type_is_stated_or_follows_from_the_number_of_labels(
    tiny_model: Callable[..., PreTrainedModel],
) -> None:
    assert task_of(tiny_model("bert")).problem_type == "single_label_classification"
    assert task_of(tiny_model("bert", num_labels=1)).problem_type == "regression"
    several = tiny_model("bert", num_labels=3, problem_type="multi_label_classification")
    assert task_of(several).problem_type == "multi_label_classification"


def test_labels_move_by_one_and_the_last_is_ignored() -> None:
    assert next_token_labels(torch.tensor([[1, 2, -100]])).tolist() == [[2, -100, -100]]
