"""Gradients of fake-quantized layers against autograd in float64 and slow loops."""

import math
from typing import Any

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from lightning_compress.models.structure import output_dim
from lightning_compress.quantization.fake_quantized import fake_quantized


def by_autograd(inputs, matrix, spec, factor):
    """The layer with fake quantization as ``x + (quantized - x).detach()``, in float64."""

    def through(value, quantized):
        return value + (quantized - value).detach()

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
    layer = fake_quantized(layer, {"bits": 8})
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
