import functools
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from lightning_compress.errors import InputError
from lightning_compress.models import remove_heads_, set_masks_, structure_of
from lightning_compress.models.layers import remove_layers_
from lightning_compress.models.masks import masks_of

from ..families import STACKED
from .conftest import logits


@pytest.mark.parametrize("family", STACKED)
def test_a_removed_layer_is_a_skipped_one(tiny_model, family):
    model, skipped = tiny_model(family), tiny_model(family)

    def skip(module, inputs, kwargs, output):
        hidden = inputs[0] if inputs else kwargs["hidden_states"]
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    block = skipped.get_submodule(structure_of(skipped).blocks[0])
    block.register_forward_hook(skip, with_kwargs=True)
    remove_layers_(model, [0])
    assert torch.allclose(logits(model), logits(skipped), atol=1e-6)
    assert model.config.num_hidden_layers == 1
    assert len(structure_of(model).blocks) == 1


def test_a_decoder_without_a_layer_or_a_head_generates_as_without_a_cache(tiny_model):
    config = AutoConfig.for_model(
        "gpt2", vocab_size=100, n_embd=32, n_layer=3, n_head=4, n_positions=64, bos_token_id=1,
        eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    llama = LlamaConfig(
        vocab_size=100, hidden_size=32, intermediate_size=64, num_attention_heads=8,
        num_key_value_heads=4, num_hidden_layers=3, pad_token_id=0,
    )  # fmt: skip
    model: Any
    for model in (AutoModelForCausalLM.from_config(config), LlamaForCausalLM(llama)):
        model.eval()
        remove_layers_(model, [1])
        remove_heads_(model, {1: [2]})
        ids = torch.tensor([[5, 6, 7]])
        generate = functools.partial(
            model.generate, ids, max_new_tokens=6, do_sample=False,
            attention_mask=torch.ones_like(ids),
        )  # fmt: skip
        assert torch.equal(generate(use_cache=True), generate(use_cache=False))


def test_tied_embeddings_stay_tied():
    config = AutoConfig.for_model(
        "gpt2", vocab_size=100, n_embd=32, n_layer=2, n_head=4, n_positions=64
    )
    model = AutoModelForCausalLM.from_config(config)
    remove_heads_(model, {0: [0]})
    remove_layers_(model, [1])
    assert model.lm_head.weight is model.transformer.wte.weight


def test_layers_that_move_up_keep_their_masks(tiny_model):
    model = tiny_model("bert")
    name = "bert.encoder.layer.{}.output.dense.weight"
    masks = {name.format(layer): torch.rand(32, 64) > 0.5 for layer in (0, 1)}
    set_masks_(model, masks)
    remove_layers_(model, [0])
    assert list(masks_of(model)) == [name.format(0)]
    assert torch.equal(masks_of(model)[name.format(0)], masks[name.format(1)])


def test_layers_that_are_one_block_cannot_be_removed(tiny_model):
    with pytest.raises(InputError, match="one block, used again and again"):
        remove_layers_(tiny_model("albert"), [0])


def test_layers_that_depend_on_their_position_cannot_be_removed(tiny_model):
    with pytest.raises(InputError, match="scale_attn_by_inverse_layer_idx"):
        remove_layers_(tiny_model("gpt2", scale_attn_by_inverse_layer_idx=True), [0])
