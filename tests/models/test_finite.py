import torch

from lightning_compress.models.finite import first_not_finite, is_finite, not_finite


def test_padding_does_not_count():
    batch = {
        "input_ids": torch.tensor([[5, 6, 0]]),
        "attention_mask": torch.tensor([[1, 1, 0]]),
    }
    logits = torch.zeros(1, 3, 4)
    logits[0, 2] = float("nan")
    assert is_finite(logits, batch)
    logits[0, 1, 2] = float("inf")
    assert not is_finite(logits, batch)


def test_the_first_module_is_named_and_no_hook_stays(tiny_bert):
    batch = {"input_ids": torch.tensor([[5, 6, 7]])}
    assert first_not_finite(tiny_bert, batch) is None
    with torch.no_grad():
        tiny_bert.bert.encoder.layer[1].intermediate.dense.bias[3] = float("nan")
    name = "bert.encoder.layer.1.intermediate.dense"
    tiny_bert.train()
    assert first_not_finite(tiny_bert, batch) == name
    assert all(module.training for module in tiny_bert.modules())
    assert not any(module._forward_hooks for module in tiny_bert.modules())
    assert name in not_finite(tiny_bert, batch, "fp32")
    assert "take bf16" in not_finite(None, batch, "fp16")
