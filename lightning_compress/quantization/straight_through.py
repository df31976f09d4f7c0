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
    quantize_per_row,
    scale_per_row,
)


def fake_quantize_per_row(rows: Tensor, bits: int, factor: float = 1.0) -> Tensor:
    """Quantize with one scale per row, dequantize and multiply: [..., N] to [..., N]."""
    outputs: Tensor = _FakeQuantizePerRow.apply(rows, bits, factor)  # type: ignore[no-untyped-call]  # torch's
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
    def forward(ctx: Any, rows: Tensor, bits: int, factor: float) -> Tensor:
        ctx.factor = factor
        integers, scale = quantize_per_row(rows, bits)
        return integers * (scale * factor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient * ctx.factor, None, None


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
        # Not a view, which a model may not change in place, as Falcon adds to it.
        found: Tensor = torch.ops.aten._unsafe_view(outputs, outputs.shape)
        return found

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight = ctx.saved_tensors
        layer: QuantizedLinear = ctx.layer
        rows = inputs.reshape(-1, layer.in_features).float()
        grad_outputs = gradient.reshape(-1, layer.out_features).float()
        if layer.smoothing_scale is not None:
            rows, weight = rows * layer.smoothing_scale, weight / layer.smoothing_scale
        grad_rows = grad_outputs @ layer.dequantized()
        grad_input_scale = grad_weight_scale = None
        if layer.activations == "static":
            integers, slope, clipped = _rounded(
                rows / layer.input_scale,
                INPUT_QMIN - layer.input_zero_point,
                INPUT_QMAX - layer.input_zero_point,
            )
            grad_weight = (grad_outputs.t() @ integers).mul_(layer.input_scale)
            # The paper's gradient scale, so that scales learn at the pace of weights.
            pace = (rows.numel() * INPUT_QMAX) ** -0.5
            grad_input_scale = torch.vdot(grad_rows.view(-1), slope.view(-1)).reshape(1) * pace
            grad_rows.masked_fill_(clipped, 0)
        elif layer.activations == "dynamic":
            token_scale = scale_per_row(rows)
            grad_weight = grad_outputs.t() @ (rows / token_scale).round_().mul_(token_scale)
        else:
            grad_weight = grad_outputs.t() @ rows
        if ctx.needs_input_grad[3]:
            qmax = QMAX[layer.bits]
            limit = weight.new_tensor(qmax)
            _, slope, clipped = _rounded(weight / layer.scale, -limit, limit)
            pace = (layer.in_features * qmax) ** -0.5
            grad_weight_scale = (grad_weight * slope).sum(1, keepdim=True) * pace
            grad_weight.masked_fill_(clipped, 0)
        if layer.smoothing_scale is not None:
            grad_rows = grad_rows * layer.smoothing_scale
            grad_weight = grad_weight / layer.smoothing_scale
        grad_bias = grad_outputs.sum(0) if ctx.needs_input_grad[2] else None
        grad_inputs = grad_rows.reshape(inputs.shape).to(inputs.dtype)
        return grad_inputs, grad_weight, grad_bias, grad_weight_scale, grad_input_scale, None


def _rounded(scaled: Tensor, smallest: Tensor, largest: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Quantize values that are divided by their scale, which are overwritten.

    Returns:
        The integers, in floating point; the slope of the dequantized values over the scale; and
        which values are clipped.
    """
    rounded = scaled.round()
    integers = rounded.clamp(smallest, largest)
    clipped = rounded != integers
    slope = torch.sub(integers, scaled.masked_fill_(clipped, 0), out=scaled)
    return integers, slope, clipped
