import pytest
import torch

from lightning_compress.errors import InputError
from lightning_compress.quantization.activation_stats import collect_activation_stats

NAMES = ["bert.encoder.layer.0.attention.self.query", "bert.encoder.layer.1.output.dense",
         "bert.pooler.dense"]  # fmt: skip


def test_padding_is_left_out(tiny_bert, calibration_of):
    calibration = calibration_of(tiny_bert)
    alone = [
        {"input_ids": row[mask.bool()][None]}
        for batch in calibration.batches
        for row, mask in zip(
            batch["input_ids"],
            batch.get("attention_mask", torch.ones_like(batch["input_ids"])),
            strict=True,
        )
    ]
    whole = collect_activation_stats(tiny_bert, NAMES, calibration.batches)
    single = collect_activation_stats(tiny_bert, NAMES, alone)
    for name in NAMES:
        torch.testing.assert_close(whole[name].max, single[name].max)
        torch.testing.assert_close(whole[name].min, single[name].min)
    assert len(whole[NAMES[0]].samples) == 6 * 9 + 12 + 5 + 8
    assert len(whole[NAMES[2]].samples) == 9  # a text each


def test_an_unused_layer_is_refused(tiny_bert, calibration_of):
    tiny_bert.spare = torch.nn.Linear(4, 4)
    with pytest.raises(InputError, match="spare was not used by any calibration example"):
        collect_activation_stats(tiny_bert, [*NAMES, "spare"], calibration_of(tiny_bert).batches)
