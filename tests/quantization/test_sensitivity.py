import itertools

import torch

from lightning_compress.quantization import QuantizationConfig, sensitivities


def test_the_most_sensitive_module_comes_first(tiny_bert, calibration_of):
    before = {name: value.clone() for name, value in tiny_bert.state_dict().items()}
    with torch.no_grad():
        # One weight beside which the others of the row round to nothing; its input is made zero.
        weight = tiny_bert.bert.encoder.layer[0].intermediate.dense.weight
        weight.mul_(5)
        weight[:, 7] = 3000
        tiny_bert.bert.encoder.layer[0].attention.output.LayerNorm.weight[7] = 0
        tiny_bert.bert.encoder.layer[0].attention.output.LayerNorm.bias[7] = 0
        changed = {name: value.clone() for name, value in tiny_bert.state_dict().items()}
    steps: list[str] = []
    found = sensitivities(
        tiny_bert, QuantizationConfig(), calibration_of(tiny_bert), on_progress=steps.append
    )
    assert next(iter(found)) == "bert.encoder.layer.0.intermediate.dense"
    assert sorted(steps) == sorted(found)
    assert all(first >= second for first, second in itertools.pairwise(found.values()))
    # A divergence is never negative, but for float32 rounding of nearly equal logits.
    assert all(value > -1e-12 for value in found.values())
    assert before.keys() == changed.keys() == tiny_bert.state_dict().keys()
    assert all(torch.equal(value, tiny_bert.state_dict()[name]) for name, value in changed.items())
