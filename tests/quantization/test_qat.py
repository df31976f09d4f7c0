"""Layers that round while they learn, and what they are converted to."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from lightning_compress.errors import InputError
from lightning_compress.models import manifest_of, set_masks_
from lightning_compress.models.masks import apply_masks_
from lightning_compress.models.modeling_quantized import QuantizedLinear
from lightning_compress.models.structure import output_dim
from lightning_compress.quantization import QuantizationConfig, coverage_of, quantize_
from lightning_compress.quantization.fake_quantized import (
    FakeQuantConv1D,
    FakeQuantEmbedding,
    FakeQuantLinear,
    convert_,
    fake_quantized,
    fake_quantized_specs,
    place_fake_quantized_,
)
from lightning_compress.quantization.qat import prepare_

from ..families import ALL
from .conftest import INTEGER_SCHEMES


def grouped(scheme, **options):
    return QuantizationConfig(scheme, group_size=8, **options)


@torch.inference_mode()
def logits_of(model, calibration):
    return [calibration.logits(batch) for batch in calibration.batches]


def train_(model, calibration, steps=3, learning_rate=1e-2):
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    losses = []
    for _ in range(steps):
        for batch in calibration.batches:
            optimizer.zero_grad()
            labels = batch["input_ids"][:, 0] % 2
            loss = functional.cross_entropy(calibration.logits(batch)[..., :2], labels)
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("scheme", INTEGER_SCHEMES)
@pytest.mark.parametrize("family", ALL)
def test_a_trained_model_converts_bit_exactly(tiny_model, calibration_of, family, scheme):
    model = tiny_model(family)
    calibration = calibration_of(model)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    prepare_(model, grouped(scheme), calibration_batches=calibration.batches)
    assert before.keys() <= {name for name, _ in model.named_parameters()}
    losses = train_(model, calibration)
    assert losses[-1] < losses[0]
    after = dict(model.named_parameters())
    assert not any(torch.equal(after[name], old) for name, old in before.items() if old.dim() == 2)
    rounding = logits_of(model, calibration)
    convert_(model)
    assert all(
        torch.equal(*both) for both in zip(rounding, logits_of(model, calibration), strict=True)
    )
    assert coverage_of(model).quantized_fraction > 0.9
    (edit,) = manifest_of(model)
    assert (edit["edit"], edit["scheme"]) == ("quantize", scheme)


def test_symmetric_zero_points_stay_zero_in_training(tiny_bert, calibration_of):
    calibration = calibration_of(tiny_bert)
    config = QuantizationConfig("int8-static", symmetric=True)
    prepare_(tiny_bert, config, calibration_batches=calibration.batches)
    train_(tiny_bert, calibration)
    rounding = logits_of(tiny_bert, calibration)
    convert_(tiny_bert)
    layers = [one for one in tiny_bert.modules() if isinstance(one, QuantizedLinear)]
    assert len(layers) == 13
    assert not any(
        layer.input_zero_point.any() or layer.zero_point_correction.any() for layer in layers
    )
    again = logits_of(tiny_bert, calibration)
    assert all(torch.equal(*both) for both in zip(rounding, again, strict=True))


@pytest.mark.parametrize("scheme", INTEGER_SCHEMES)
@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_untrained_conversion_equals_post_training_quantization(
    tiny_model, calibration_of, family, scheme
):
    trained, direct = tiny_model(family), tiny_model(family)
    batches = calibration_of(trained).batches
    prepare_(trained, grouped(scheme), calibration_batches=batches)
    convert_(trained)
    quantize_(direct, grouped(scheme), calibration_batches=batches)
    one, other = trained.state_dict(), direct.state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert manifest_of(trained) == manifest_of(direct)


def by_autograd(inputs, matrix, spec, factor):
    """The same layer with rounding as ``x + (rounded - x).detach()``, in float64."""

    def through(value, rounded):
        return value + (rounded - value).detach()

    if factor is not None:
        inputs, matrix = inputs * factor, matrix / factor
    limit = 7 if spec["bits"] == 4 else 127
    groups = matrix.reshape(len(matrix), -1, spec["group_size"] or matrix.shape[1])
    step = groups.abs().amax(-1, keepdim=True) / limit
    weight = through(groups, (groups / step).round() * step).reshape(matrix.shape)
    if spec["activations"] == "dynamic":
        own = inputs.abs().amax(-1, keepdim=True) / 127
        inputs = through(inputs, (inputs / own).round() * own)
    return inputs @ weight.T


@pytest.mark.parametrize("smoothing", [False, True])
@pytest.mark.parametrize("kind", [nn.Linear, Conv1D])
@pytest.mark.parametrize(
    ("bits", "group_size", "activations"), [(8, 0, "float"), (4, 6, "float"), (8, 0, "dynamic")]
)
def test_gradients_are_straight_through(kind, bits, group_size, activations, smoothing):
    torch.manual_seed(0)
    layer: Any = nn.Linear(12, 7) if kind is nn.Linear else Conv1D(7, 12)
    layer.weight.data.normal_()
    spec = {"in_features": 12, "out_features": 7, "bits": bits, "group_size": group_size,
            "activations": activations, "smoothing": smoothing, "bias": True}  # fmt: skip
    layer = fake_quantized(layer, spec)
    if smoothing:
        layer.smoothing_scale.uniform_(0.5, 2)
    inputs: Any = torch.randn(3, 5, 12, requires_grad=True)
    slope = torch.randn(3, 5, 7)
    (layer(inputs) * slope).sum().backward()
    matrix = (layer.weight if output_dim(layer) == 0 else layer.weight.T).detach().double()
    matrix.requires_grad_()
    other = inputs.detach().double().requires_grad_()
    factor = layer.smoothing_scale.double() if smoothing else None
    found = by_autograd(other, matrix, spec, factor) + layer.bias.detach().double()
    torch.testing.assert_close(layer(inputs).double(), found, rtol=1e-4, atol=1e-4)
    (found * slope.double()).sum().backward()
    torch.testing.assert_close(inputs.grad.double(), other.grad, rtol=1e-4, atol=1e-4)
    gradient = layer.weight.grad if output_dim(layer) == 0 else layer.weight.grad.T
    torch.testing.assert_close(gradient.double(), matrix.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(layer.bias.grad, slope.sum((0, 1)))


def test_learned_scales_have_the_gradients_of_the_paper():
    """Esser et al., equation 3, number by number; what is cut off is no longer pulled."""
    torch.manual_seed(0)
    layer: Any = nn.Linear(6, 4)
    spec = {"in_features": 6, "out_features": 4, "bits": 8, "group_size": 0,
            "activations": "static", "smoothing": False, "bias": True}  # fmt: skip
    layer = fake_quantized(layer, spec)
    layer.weight.data.normal_()
    layer.weight_scale.copy_(layer.weight.detach().abs().amax(1) / 90)
    layer.weight_scale[1] /= 2  # some of its weights are cut off
    layer.input_scale.fill_(0.02 / 1.25)
    layer.input_log_scale.data.fill_(math.log(1.25))
    layer.input_zero_point.fill_(11)
    inputs: Any = torch.randn(9, 6) * 1.5
    inputs.requires_grad_()
    slope = torch.randn(9, 4)
    (layer(inputs) * slope).sum().backward()

    def pieces(value, step, zero, lowest):
        """What it becomes, its slope over itself, and over the step."""
        whole = float(torch.tensor(value / step).round()) + zero
        if not lowest <= whole <= 127:
            edge = (127 if whole > 0 else lowest) - zero
            return edge * step, 0.0, float(edge)
        return (whole - zero) * step, 1.0, (whole - zero) - value / step

    seen = [[pieces(float(x), 0.02, 11, -128) for x in row] for row in inputs.detach().double()]
    rows = layer.weight.detach().double()
    steps = layer.weight_scale.double().tolist()
    weights = [
        [pieces(float(w), step, 0, -127) for w in row]
        for row, step in zip(rows, steps, strict=True)
    ]
    assert any(piece[1] == 0 for row in weights for piece in row)
    assert any(piece[1] == 0 for row in seen for piece in row)
    to_step, to_weight_steps = 0.0, [0.0] * 4
    to_inputs, to_weight = torch.zeros(9, 6), torch.zeros(4, 6)
    for row in range(9):
        for output in range(4):
            for column in range(6):
                pulled = float(slope[row, output])
                value, open_value, step_value = seen[row][column]
                weight, open_weight, step_weight = weights[output][column]
                to_inputs[row, column] += pulled * weight * open_value
                to_step += pulled * weight * step_value
                to_weight[output, column] += pulled * value * open_weight
                to_weight_steps[output] += pulled * value * step_weight
    torch.testing.assert_close(inputs.grad, to_inputs, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(layer.weight.grad, to_weight, rtol=1e-3, atol=1e-3)
    # A step changes by itself where its stretch changes by one.
    wanted = 0.02 * to_step / (54 * 127) ** 0.5
    assert float(layer.input_log_scale.grad) == pytest.approx(wanted, rel=1e-2)
    both = zip(steps, to_weight_steps, strict=True)
    of_rows = [step * one / (6 * 127) ** 0.5 for step, one in both]
    assert layer.weight_log_scale.grad.tolist() == pytest.approx(of_rows, rel=1e-2, abs=1e-4)


def test_embeddings_have_straight_through_gradients():
    layer: Any = nn.Embedding(9, 6, padding_idx=0)
    layer = fake_quantized(layer, {})
    ids = torch.tensor([[3, 0, 3], [5, 1, 0]])
    slope = torch.randn(2, 3, 6)
    found = layer(ids)
    assert torch.equal(found, layer.quantized()(ids))
    (found * slope).sum().backward()
    wanted = torch.zeros(9, 6)
    for place in range(6):
        token = int(ids.flatten()[place])
        if token != 0:
            wanted[token] += slope.view(6, 6)[place]
    torch.testing.assert_close(layer.weight.grad, wanted)


def test_a_shared_weight_is_trained_and_converted_as_one(calibration_of):
    config = AutoConfig.for_model("gpt2", vocab_size=100, n_embd=32, n_layer=1, n_head=4,
                                  bos_token_id=1, eos_token_id=1)  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    calibration = calibration_of(model)
    prepare_(model, grouped("int8-static"), calibration_batches=calibration.batches)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for batch in calibration.batches:
        logits = calibration.logits(batch)
        functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), batch["input_ids"][:, 1:].flatten()
        ).backward()
        optimizer.step()
    model.eval()
    rounding = logits_of(model, calibration)
    convert_(model)
    assert model.lm_head.weight is model.transformer.wte.weight
    assert all(
        torch.equal(*both) for both in zip(rounding, logits_of(model, calibration), strict=True)
    )


def test_pruned_weights_stay_zero_through_training(tiny_bert, calibration_of):
    name = "bert.encoder.layer.0.output.dense.weight"
    mask = torch.rand(tiny_bert.get_parameter(name).shape) < 0.3
    set_masks_(tiny_bert, {name: mask})
    prepare_(tiny_bert, "int8-dynamic")
    train_(tiny_bert, calibration_of(tiny_bert), steps=1)
    apply_masks_(tiny_bert)
    convert_(tiny_bert)
    weight = tiny_bert.get_submodule(name.removesuffix(".weight")).dequantized()
    assert (weight[~mask] == 0).all()
    assert (weight[mask] != 0).float().mean() > 0.8


@pytest.mark.parametrize("scheme", INTEGER_SCHEMES)
def test_fake_quantized_layers_are_restored_from_their_specs(tiny_model, calibration_of, scheme):
    model, other = tiny_model("gpt2"), tiny_model("gpt2")
    calibration = calibration_of(model)
    config = grouped(scheme, smooth_alpha=0.5)
    prepare_(model, config, calibration_batches=calibration.batches)
    train_(model, calibration, steps=1)
    place_fake_quantized_(other, fake_quantized_specs(model))
    other.load_state_dict(model.state_dict())
    kinds = {type(module) for module in other.modules()}
    assert kinds >= {FakeQuantConv1D, FakeQuantEmbedding}
    found = [logits_of(one, calibration_of(one)) for one in (model, other)]
    assert all(torch.equal(*both) for both in zip(*found, strict=True))
    assert copy.deepcopy(other).state_dict().keys() == model.state_dict().keys()


def test_training_works_under_autocast(tiny_bert, calibration_of):
    calibration = calibration_of(tiny_bert)
    prepare_(tiny_bert, "int8-dynamic")
    with torch.autocast("cpu", torch.bfloat16):
        found = logits_of(tiny_bert, calibration)
        losses = train_(tiny_bert, calibration)
    whole = logits_of(tiny_bert, calibration)
    assert losses[-1] < losses[0]
    assert all(parameter.dtype == torch.float32 for parameter in tiny_bert.parameters())
    assert [one.shape for one in found] == [one.shape for one in whole]


def test_a_refused_model_is_unchanged(tiny_bert, calibration_of):
    with pytest.raises(InputError, match="bf16 needs no quantization-aware training: train with"):
        prepare_(tiny_bert, "bf16")
    with pytest.raises(InputError, match=r"scheme must be one of .*, not 'int3'"):
        prepare_(tiny_bert, "int3")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="int8-static needs calibration examples"):
        prepare_(tiny_bert, "int8-static")
    with pytest.raises(InputError, match="has no fake-quantized layers: call prepare_"):
        convert_(tiny_bert)
    assert not fake_quantized_specs(tiny_bert)
    assert manifest_of(tiny_bert) == []
    prepare_(tiny_bert, "int8-dynamic")
    assert isinstance(tiny_bert.bert.pooler.dense, FakeQuantLinear)
    for again in (lambda: prepare_(tiny_bert, "int8-dynamic"),
                  lambda: quantize_(tiny_bert, "int8-dynamic")):  # fmt: skip
        with pytest.raises(InputError, match="is being trained to be quantized, to int8-"):
            again()
