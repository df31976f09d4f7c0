"""Parameters, multiplications and bytes against formulas and files."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel, PreTrainedModel

from lightning_compress import measure_footprint, save_compressed
from lightning_compress.evaluation.footprint import (
    count_macs,
    count_parameters,
    peak_allocated,
    saved_size,
)
from lightning_compress.models import set_masks_


def batch(length: int, size: int = 1) -> dict[str, torch.Tensor]:
    return {
        "input_ids": torch.arange(size * length).reshape(size, length) % 90 + 5,
        "attention_mask": torch.ones(size, length, dtype=torch.int64),
        "labels": torch.zeros(size, dtype=torch.int64),
        "example_id": torch.arange(size),
    }


def half_masks(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    weights = {n: p for n, p in model.named_parameters() if "encoder" in n and p.dim() == 2}
    return {name: weight.abs() > weight.abs().median() for name, weight in weights.items()}


@pytest.mark.parametrize("length", [1, 7, 16, 40])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_macs_of_bert_follow_the_closed_formula(
    tiny_model: Callable[..., PreTrainedModel], length: int, attention: str
) -> None:
    model = tiny_model("bert", attn_implementation=attention)
    hidden, inner, layers, labels = 32, 64, 2, 2
    projections = 4 * hidden * hidden * length
    attended = 2 * length * length * hidden
    feed_forward = 2 * hidden * inner * length
    head = hidden * hidden + hidden * labels
    expected = layers * (projections + attended + feed_forward) + head
    assert count_macs(model, batch(length)) == expected
    assert count_macs(model, batch(length, size=3)) == expected  # per example


def test_macs_of_gpt2_count_the_tied_head_and_causal_attention_in_full() -> None:
    config = GPT2Config(
        vocab_size=100, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    length = 11
    blocks = 2 * (12 * 32 * 32 * length + 2 * length * length * 32)
    assert count_macs(GPT2LMHeadModel(config), batch(length)) == blocks + 32 * 100 * length


def test_masks_change_the_non_zero_parameters_and_nothing_else(tiny_bert: PreTrainedModel) -> None:
    before = measure_footprint(tiny_bert, batch(9))
    masks = half_masks(tiny_bert)
    set_masks_(tiny_bert, masks)
    after = measure_footprint(tiny_bert, batch(9))
    pruned = sum(int((~mask).sum()) for mask in masks.values())
    assert pruned > 0
    assert before.nonzero_parameters - after.nonzero_parameters == pruned
    assert (after.parameters, after.macs) == (before.parameters, before.macs)


def test_tied_parameters_count_once() -> None:
    config = BertConfig(
        vocab_size=100, hidden_size=16, num_hidden_layers=1, num_attention_heads=1,
        intermediate_size=16,
    )  # fmt: skip
    model = BertForMaskedLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    distinct = {p.data_ptr(): p.numel() for _, p in model.named_parameters(remove_duplicate=False)}
    assert count_parameters(model) == (sum(distinct.values()), sum(distinct.values()))


def test_size_is_what_lies_on_disk_masks_and_manifest_included(
    tiny_bert: PreTrainedModel, tmp_path: Path
) -> None:
    dense = saved_size(tiny_bert)
    set_masks_(tiny_bert, half_masks(tiny_bert))
    folder = save_compressed(tiny_bert, tmp_path / "model")
    on_disk = sum(file.stat().st_size for file in folder.iterdir())
    assert {"masks.safetensors", "config.json"} <= {file.name for file in folder.iterdir()}
    assert saved_size(tiny_bert) == on_disk > dense


def test_peak_memory_is_that_of_tensors_alive_together(
    capfd: pytest.CaptureFixture[str],
) -> None:
    first, second = nn.Linear(100, 4000), nn.Linear(4000, 50)
    rows = torch.randn(25, 100)

    def call() -> torch.Tensor:
        with torch.inference_mode():
            return second(torch.relu(first(rows)))  # type: ignore[no-any-return]

    call()
    hidden = 25 * 4000 * 4  # the hidden layer before and after its activation
    assert peak_allocated(call, torch.device("cpu")) == pytest.approx(2 * hidden, rel=0.05)
    assert capfd.readouterr().err == ""


def test_peak_memory_holds_the_weights_and_grows_with_the_batch(
    tiny_bert: PreTrainedModel,
) -> None:
    weights = sum(p.nbytes for p in tiny_bert.parameters())
    small = measure_footprint(tiny_bert, batch(16)).peak_memory_bytes
    large = measure_footprint(tiny_bert, batch(16, size=8)).peak_memory_bytes
    assert small is not None
    assert large is not None
    assert weights < small < large
    assert large - weights > 4 * (small - weights)


def test_the_training_flag_is_restored_module_by_module(tiny_bert: PreTrainedModel) -> None:
    tiny_bert.train()
    tiny_bert.get_submodule("classifier").eval()
    before = [module.training for module in tiny_bert.modules()]
    measure_footprint(tiny_bert, batch(5))
    assert [module.training for module in tiny_bert.modules()] == before
