"""Quantized layers in the forward pass, straight-through gradients in the backward pass.

Sources: Bengio et al., "Estimating or Propagating Gradients Through Stochastic Neurons for
Conditional Computation", 2013, https://arxiv.org/abs/1308.3432 (the gradient of quantization is
taken for that of the identity); Esser et al., "Learned Step Size Quantization", 2020,
https://arxiv.org/abs/1902.08153 (gradients of learned scales).
"""

from typing import Any

import torch
from torch import Tensor

from lightning_compress.models.modeling_kernels import INPUT_QMAX, INPUT_QMIN
from lightning_compress.models.modeling_quantized import (
    QMAX,
    QuantizedLinear,
    quantize_affine,
    quantize_per_row,
)


def fake_quantize_per_row(rows: Tensor, bits: int) -> Tensor:
    """Quantize with one scale per row and dequantize: [..., N] to [..., N]."""
    outputs: Tensor = _FakeQuantizePerRow.apply(rows, bits)  # type: ignore[no-untyped-call]  # torch's
    return outputs


def fake_quantized_linear(
    layer: QuantizedLinear,
    inputs: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    weight_scale: Tensor | None,
    input_scale: Tensor | None,
) -> Tensor:
    """Run a quantized linear layer, with gradients for the weight that it was made from.

    Args:
        layer: the quantized layer.
        inputs: [..., in_features].
        weight: the floating-point weight that it was made from, [out_features, in_features].
        bias: the layer's, [out_features].
        weight_scale: learned scales that it was made with, [out_features, 1].
        input_scale: learned scale of its inputs, [1].

    Returns:
        [..., out_features], bit-identical to ``layer(inputs)``.
    """
    outputs: Tensor = _FakeQuantizedLinear.apply(  # type: ignore[no-untyped-call]  # torch's
        inputs, weight, bias, weight_scale, input_scale, layer
    )
    return outputs


class _FakeQuantizePerRow(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, bits: int) -> Tensor:
        integers, scale = quantize_per_row(rows, bits)
        return integers * scale

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class _FakeQuantizedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        weight_scale: Tensor | None,
        input_scale: Tensor | None,
        layer: QuantizedLinear,
    ) -> Tensor:
        ctx.layer = layer
        ctx.save_for_backward(inputs, weight)
        outputs: Tensor = layer(inputs)
        return outputs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight = ctx.saved_tensors
        layer: QuantizedLinear = ctx.layer
        rows = inputs.reshape(-1, layer.in_features).float()
        grad_outputs = gradient.reshape(-1, layer.out_features).float()
        if layer.smoothing_scale is not None:
            rows, weight = rows * layer.smoothing_scale, weight / layer.smoothing_scale
        dequantized, unclipped, input_slope = _dequantized_inputs(layer, rows)
        grad_rows = grad_outputs @ layer.dequantized()
        grad_weight = grad_outputs.t() @ dequantized
        grad_input_scale = None
        if unclipped is not None and input_slope is not None:
            # The paper's gradient scale, so that scales learn at the pace of weights.
            pace = (rows.numel() * INPUT_QMAX) ** -0.5
            grad_input_scale = (grad_rows * input_slope).sum().reshape(1) * pace
            grad_rows = grad_rows * unclipped
        grad_weight_scale = None
        if ctx.needs_input_grad[3]:
            qmax = QMAX[layer.bits]
            inside = (weight / layer.scale).round().abs() <= qmax
            slope = layer.weight - torch.where(inside, weight / layer.scale, 0.0)
            pace = (layer.in_features * qmax) ** -0.5
            grad_weight_scale = (grad_weight * slope).sum(1, keepdim=True) * pace
            grad_weight = grad_weight * inside
        if layer.smoothing_scale is not None:
            grad_rows = grad_rows * layer.smoothing_scale
            grad_weight = grad_weight / layer.smoothing_scale
        grad_bias = grad_outputs.sum(0) if ctx.needs_input_grad[2] else None
        grad_inputs = grad_rows.reshape(inputs.shape).to(inputs.dtype)
        return grad_inputs, grad_weight, grad_bias, grad_weight_scale, grad_input_scale, None


def _dequantized_inputs(
    layer: QuantizedLinear, rows: Tensor
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The inputs that the weights are multiplied by, [M, in_features].

    Of a static layer also which inputs are not clipped, and the slope of each over the scale.
    """
    if layer.activations == "float":
        return rows, None, None
    if layer.activations == "dynamic":
        integers, token_scale = quantize_per_row(rows)
        return integers * token_scale, None, None
    scale, zero_point = layer.input_scale, layer.input_zero_point
    centred = quantize_affine(rows, scale, zero_point) - zero_point
    unclamped = (rows / scale).round() + zero_point
    inside = (unclamped >= INPUT_QMIN) & (unclamped <= INPUT_QMAX)
    slope = centred - torch.where(inside, rows / scale, 0.0)
    return centred * scale, inside, slope
