from typing import Any

import pytest
from torch import nn
from transformers import AlbertConfig, AlbertModel, LlamaConfig, LlamaForCausalLM, T5Config, T5Model
from transformers.pytorch_utils import Conv1D

from lightning_compress.errors import InputError
from lightning_compress.models import structure_of, transformer_in

BLOCK_CLASSES = ("Layer", "Block")


def linear_in_blocks(model):
    """The slow way: every linear layer below a module whose class is called a layer or a block."""
    found = set()
    for outer, block in model.named_modules():
        if type(block).__name__.endswith(BLOCK_CLASSES):
            for inner, module in block.named_modules():
                if isinstance(module, nn.Linear | Conv1D):
                    found.add(f"{outer}.{inner}")
    return found


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "electra", "gpt2"])
def test_linear_names_are_all_linear_layers_of_the_blocks(tiny_model, family):
    model = tiny_model(family)
    structure = structure_of(model)
    assert structure.family == family
    assert len(structure.blocks) == 2
    assert set(structure.linear_names()) == linear_in_blocks(model)
    assert structure_of(model.base_model).linear_names() == [
        name.removeprefix(f"{model.base_model_prefix}.") for name in structure.linear_names()
    ]


def test_albert_has_one_shared_block_and_llama_a_gated_one():
    albert = AlbertModel(
        AlbertConfig(
            vocab_size=20, embedding_size=8, hidden_size=8, intermediate_size=16,
            num_attention_heads=2, num_hidden_layers=3,
        )
    )  # fmt: skip
    assert len(structure_of(albert).blocks) == 1
    assert set(structure_of(albert).linear_names()) == linear_in_blocks(albert)
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=20, hidden_size=8, intermediate_size=16, num_attention_heads=2,
            num_key_value_heads=1, num_hidden_layers=2,
        )
    )  # fmt: skip
    assert set(structure_of(llama).linear_names()) == linear_in_blocks(llama)


def test_an_unknown_family_names_the_known_ones():
    model = T5Model(T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))
    with pytest.raises(InputError, match=r"'t5'.*albert, bert.*FAMILIES"):
        structure_of(model)


def test_the_transformer_is_found_inside_another_module(tiny_bert):
    outer = nn.ModuleList([nn.Linear(2, 2), tiny_bert])
    assert transformer_in(outer) is tiny_bert
    assert transformer_in(outer[1]) is tiny_bert
    assert transformer_in(nn.Linear(2, 2)) is None


def test_of_several_models_the_trained_one_is_found(tiny_model):
    teacher, student = tiny_model("bert"), tiny_model("bert")
    outer: Any = nn.ModuleDict({"teacher": teacher, "wrapped": nn.ModuleList([student])})
    with pytest.raises(InputError, match=r"2 Hugging Face models, teacher, wrapped\.0, of which 2"):
        transformer_in(outer)
    teacher.requires_grad_(False)
    assert transformer_in(outer) is student
    outer.compressed_model = "teacher"
    assert transformer_in(outer) is teacher
    outer.compressed_model = "wrapped"
    with pytest.raises(InputError, match=r"'wrapped'.*name one of teacher, wrapped\.0"):
        transformer_in(outer)
    shared: Any = nn.ModuleDict()
    shared["one"] = shared["again"] = student
    assert transformer_in(shared) is student
