import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from lightning_compress.errors import InputError
from lightning_compress.evaluation.benchmark import benchmark
from lightning_compress.evaluation.examples import Example
from lightning_compress.evaluation.model_under_test import check_examples, model_under_test
from lightning_compress.models import modeling_kernels
from lightning_compress.models.forward import most_tokens
from lightning_compress.quantization import QuantizationConfig, quantize_


def example(tokens=(5, 6), label=1):
    return Example({"input_ids": torch.tensor(tokens)}, torch.tensor(label), None)


@pytest.mark.parametrize(
    ("misfit", "message"),
    [
        (example(tokens=(5, 100)), r"token 100 and the dense model has 100: .*data\.tokenizer"),
        (example(tokens=[5] * 65), r"65 tokens .* at most 64: lower data\.max_length"),
        (example(label=2), r"label 2, counted from 0, .* knows 2 labels"),
    ],
)
def test_what_does_not_fit_is_named(tiny_bert, misfit, message):
    with pytest.raises(InputError, match=message):
        benchmark({"dense": tiny_bert}, [example(), misfit], run_name="", task_name="")


def test_the_most_that_a_model_takes_fits(tiny_model):
    for family, limit in (("bert", 64), ("roberta", 65), ("gpt2", 64)):
        model = tiny_model(family)
        assert most_tokens(model) == limit
        check_examples("dense", model, [example(tokens=[99] * limit), example(label=0)])
    check_examples("dense", tiny_model("bert", num_labels=1), [example(label=4)])  # a number
    several = example(label=[1.0, 0.0])
    many = tiny_model("bert", problem_type="multi_label_classification")
    check_examples("dense", many, [several])


@pytest.mark.parametrize("family", ["xlm-roberta", "camembert", "mpnet", "roberta", "electra"])
@pytest.mark.parametrize("quantized", [False, True])
def test_positions_behind_the_padding_index_are_known_of_any_relative(family, quantized):
    config = AutoConfig.for_model(
        family, vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=12, pad_token_id=1, embedding_size=16,
    )  # fmt: skip
    model = AutoModelForSequenceClassification.from_config(config).eval()
    if quantized:
        quantize_(model, "int8-weight")
    longest = most_tokens(model)
    assert longest == (12 if family == "electra" else 10)
    model(input_ids=torch.full((1, longest), 5))
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, longest + 1), 5))


@pytest.mark.parametrize("kernel", ["int_mm", "fbgemm"])
@pytest.mark.parametrize("full_range", [True, False])
def test_full_range_is_noted_where_it_saves_no_time(tiny_bert, monkeypatch, full_range, kernel):
    monkeypatch.setattr(modeling_kernels, "CPU_KERNEL", kernel)
    quantize_(tiny_bert, QuantizationConfig("int8-dynamic", full_range=full_range))
    found = model_under_test("compressed", tiny_bert, {"input_ids": torch.tensor([[5, 6]])})
    noted = any("full_range: false" in note for note in found.notes)
    assert noted is (full_range and kernel == "fbgemm")
