import copy

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from lightning_compress.quantization import QuantizationConfig, prepare_
from lightning_compress.quantization.fake_quantized import (
    FakeQuantConv1D,
    FakeQuantEmbedding,
    FakeQuantLinear,
    fake_quantized,
    fake_quantized_specs,
    place_fake_quantized_,
)

from .conftest import INTEGER_SCHEMES, logits_of, train_


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: nn.Linear(8, 6), FakeQuantLinear),
        (lambda: Conv1D(6, 8), FakeQuantConv1D),
        (lambda: nn.Embedding(8, 6), FakeQuantEmbedding),
    ],
)
def test_parameters_are_the_same_objects_and_no_random_number_is_drawn(make, expected):
    module = make().eval()
    before, state = dict(module.named_parameters()), torch.get_rng_state()
    spec = {"in_features": 8, "out_features": 6, "bits": 8, "group_size": 0,
            "activations": "static", "smoothing": False, "bias": True}  # fmt: skip
    layer = fake_quantized(module, spec)
    assert torch.equal(torch.get_rng_state(), state)
    assert type(layer) is expected
    assert not layer.training
    after = dict(layer.named_parameters())
    assert all(after[name] is parameter for name, parameter in before.items())
    added = {"weight_log_scale", "input_log_scale"} if expected is not FakeQuantEmbedding else set()
    assert after.keys() - before.keys() == added


@pytest.mark.parametrize("scheme", INTEGER_SCHEMES)
def test_fake_quantized_layers_are_restored_from_their_specs(tiny_model, calibration_of, scheme):
    model, other = tiny_model("gpt2"), tiny_model("gpt2")
    calibration = calibration_of(model)
    config = QuantizationConfig(scheme, group_size=8, smooth_alpha=0.5)
    prepare_(model, config, calibration_batches=calibration.batches)
    train_(model, calibration, steps=1)
    place_fake_quantized_(other, fake_quantized_specs(model))
    other.load_state_dict(model.state_dict())
    kinds = {type(module) for module in other.modules()}
    assert kinds >= {FakeQuantConv1D, FakeQuantEmbedding}
    found = [logits_of(one, calibration_of(one)) for one in (model, other)]
    assert all(torch.equal(*both) for both in zip(*found, strict=True))
    assert copy.deepcopy(other).state_dict().keys() == model.state_dict().keys()
