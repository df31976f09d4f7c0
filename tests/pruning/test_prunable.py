import pytest
import torch
from torch import nn

from lightning_compress.errors import InputError
from lightning_compress.pruning.magnitude import input_dims, prunable_weights


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "electra", "gpt2"])
def test_the_default_is_every_matrix_of_the_blocks_and_nothing_else(tiny_model, family):
    model = tiny_model(family)
    inside = {
        name
        for name, weight in model.named_parameters()
        if weight.dim() == 2 and (".layer." in name or ".h." in name)
    }
    assert set(prunable_weights(model, None)) == inside
    assert len(inside) == (8 if family == "gpt2" else 12)


def test_patterns_name_parameters_in_the_order_of_the_model(tiny_bert):
    names = prunable_weights(tiny_bert, ["*.output.dense.weight", "classifier.*"])
    wanted = [n for n, _ in tiny_bert.named_parameters() if "output.dense.weight" in n]
    assert names == [*wanted, "classifier.weight", "classifier.bias"]


@pytest.mark.parametrize("patterns", [["*.weight", "*.quary.weight"], []])
def test_a_pattern_that_matches_nothing_is_refused_with_what_there_is(tiny_bert, patterns):
    with pytest.raises(InputError, match="matches no parameter") as error:
        prunable_weights(tiny_bert, patterns)
    assert "bert.embeddings.word_embeddings.weight" in str(error.value)
    assert "more" in str(error.value)
    assert "'*.weight'" not in str(error.value)


def test_without_patterns_the_model_must_be_of_a_known_family():
    with pytest.raises(InputError, match="known are"):
        prunable_weights(nn.Linear(2, 2), None)


def test_inputs_of_conv1d_come_first_and_those_of_linear_last(tiny_model):
    for family, dim in (("gpt2", 0), ("bert", 1)):
        model = tiny_model(family)
        names = prunable_weights(model, None)
        dims = input_dims(model, names, 4)
        assert dims == dict.fromkeys(names, dim)
        for name in names:
            layer = model.get_submodule(name.removesuffix(".weight"))
            inputs = layer.weight.shape[dims[name]]
            assert layer(torch.zeros(1, inputs)).shape == (1, layer.weight.shape[1 - dims[name]])


def test_inputs_that_cannot_be_grouped_are_refused(tiny_bert):
    with pytest.raises(InputError, match="32 inputs, which is not a multiple of 5"):
        input_dims(tiny_bert, prunable_weights(tiny_bert, None), 5)
    for name in ("bert.embeddings.word_embeddings.weight", "classifier.bias"):
        with pytest.raises(InputError, match=f"{name} is no weight of a linear layer"):
            input_dims(tiny_bert, [name], 4)
