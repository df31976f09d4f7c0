"""What quantized layers say, with gradients for what they were made of.

Source: Bengio et al., "Estimating or Propagating Gradients Through Stochastic Neurons for
Conditional Computation", 2013, https://arxiv.org/abs/1308.3432: the backward pass takes rounding
for the identity. Learned steps: Esser et al., "Learned Step Size Quantization", 2020,
https://arxiv.org/abs/1902.08153.
"""

from typing import Any

import torch
from torch import Tensor

from lightning_compress.models.modeling_quantized import (
    INPUTS,
    LIMITS,
    QuantizedLinear,
    round_by,
    round_rows,
)

_LIMIT = LIMITS[8]


def rounded_rows(rows: Tensor) -> Tensor:
    """Rows in whole multiples of a step of each: [..., N]."""
    found: Tensor = _RoundedRows.apply(rows)  # type: ignore[no-untyped-call]  # torch's
    return found


def as_quantized(
    made: QuantizedLinear,
    inputs: Tensor,
    matrix: Tensor,
    bias: Tensor | None,
    weight_step: Tensor | None,
    input_step: Tensor | None,
) -> Tensor:
    """What a quantized linear layer says.

    Args:
        made: the layer.
        inputs: [..., inputs].
        matrix: the weight that it was made of, [outputs, inputs].
        bias: the layer's.
        weight_step: learned steps that it was made with, [outputs, 1].
        input_step: a learned step of its inputs, [1].

    Returns:
        [..., outputs], with gradients for all but the layer.
    """
    found: Tensor = _AsQuantized.apply(inputs, matrix, bias, weight_step, input_step, made)  # type: ignore[no-untyped-call]  # torch's
    return found


class _RoundedRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        numbers, step = round_rows(rows)
        return numbers * step

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class _AsQuantized(torch.autograd.Function):
    """What the quantized layer says, and gradients for what it was made of."""

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        matrix: Tensor,
        bias: Tensor | None,
        weight_step: Tensor | None,
        input_step: Tensor | None,
        made: QuantizedLinear,
    ) -> Tensor:
        ctx.made = made
        ctx.save_for_backward(inputs, matrix)
        found: Tensor = made(inputs)
        return found

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs, matrix = ctx.saved_tensors
        made: QuantizedLinear = ctx.made
        rows = inputs.reshape(-1, made.in_features).float()
        out = gradient.reshape(-1, made.out_features).float()
        if made.factor is not None:
            rows, matrix = rows * made.factor, matrix / made.factor
        met, open_inputs, input_slope = _met(made, rows)
        to_rows, to_weight = out @ made.dequantized(), out.t() @ met
        to_input_step = None
        if open_inputs is not None and input_slope is not None:
            scale = (rows.numel() * _LIMIT) ** -0.5
            to_input_step = (to_rows * input_slope).sum().reshape(1) * scale
            to_rows = to_rows * open_inputs
        to_weight_step = None
        if ctx.needs_input_grad[3]:
            inside = (matrix / made.step).round().abs() <= _LIMIT
            slope = made.weight - torch.where(inside, matrix / made.step, 0.0)
            scale = (made.in_features * _LIMIT) ** -0.5
            to_weight_step = (to_weight * slope).sum(1, keepdim=True) * scale
            to_weight = to_weight * inside
        if made.factor is not None:
            to_rows, to_weight = to_rows * made.factor, to_weight / made.factor
        to_bias = out.sum(0) if ctx.needs_input_grad[2] else None
        to_inputs = to_rows.reshape(inputs.shape).to(inputs.dtype)
        return to_inputs, to_weight, to_bias, to_weight_step, to_input_step, None


def _met(made: QuantizedLinear, rows: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """What the weights meet, which inputs are not cut off, and its slope over the step."""
    if made.activations == "float":
        return rows, None, None
    if made.activations == "dynamic":
        numbers, own = round_rows(rows)
        return numbers * own, None, None
    counted = round_by(rows, made.input_step, made.input_zero) - made.input_zero
    whole = (rows / made.input_step).round() + made.input_zero
    inside = (whole >= INPUTS[0]) & (whole <= INPUTS[1])
    slope = counted - torch.where(inside, rows / made.input_step, 0.0)
    return counted * made.input_step, inside, slope
