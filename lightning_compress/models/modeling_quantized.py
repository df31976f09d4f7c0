"""Quantized linear layers and embeddings: int8 or int4 weights, float, dynamic or static inputs.

This file needs torch only. It is copied into the folder of every quantized model, beside
``modeling_compressed.py``, which builds these modules from ``quantized_modules`` in
``config.json``.

Weights are quantized symmetrically: an integer times a scale. Int8 weights have one scale per
output channel (a row of the weight); int4 weights one per group of neighbouring inputs in a row.
Inputs stay in floating point (weight-only quantization), or are quantized to int8 with one scale
per token (dynamic) or with one scale and zero point found by calibration (static); int8 products
accumulate exactly in int32. Source: Jacob et al., "Quantization and Training of Neural Networks for
Efficient Integer-Arithmetic-Only Inference", 2018, https://arxiv.org/abs/1712.05877.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

QMAX = {8: 127, 4: 7}
"""Largest integer of a symmetrically quantized value, by bits; the smallest is its negative."""

INPUT_QMIN, INPUT_QMAX = -128, 127
"""Range of statically quantized inputs, which have a zero point and so use all of int8."""

MIN_SCALE = 1e-12
# torch._int_mm on CUDA takes more than 16 rows, and columns in multiples of eight.
_CUDA_ROWS, _CUDA_COLUMNS = 17, 8


def quantize_per_row(values: Tensor, bits: int = 8) -> tuple[Tensor, Tensor]:
    """Quantize symmetrically with one scale per row (the last dimension).

    Args:
        values: [..., N] float.
        bits: 8 or 4.

    Returns:
        Integers [..., N] int8 in [-QMAX[bits], QMAX[bits]], and scales [..., 1] float32.
    """
    values, qmax = values.float(), QMAX[bits]
    scale = (values.abs().amax(-1, keepdim=True) / qmax).clamp(min=MIN_SCALE)
    return (values / scale).round().clamp(-qmax, qmax).to(torch.int8), scale


def quantize_affine(values: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """Quantize with one scale and zero point: ``round(values / scale) + zero_point``, clamped.

    Args:
        values: [...] float.
        scale: [1] float32.
        zero_point: [1] int32, the integer that stands for a value of zero.

    Returns:
        [...] int8 in [INPUT_QMIN, INPUT_QMAX].
    """
    integers = (values.float() / scale).round() + zero_point
    return integers.clamp(INPUT_QMIN, INPUT_QMAX).to(torch.int8)


def int8_matmul(left: Tensor, right: Tensor) -> Tensor:
    """Matrix product with exact accumulation: [M, K] int8 by [N, K] int8 gives [M, N] int32."""
    if left.is_cuda:
        rows, columns = left.shape[0], right.shape[0]  # len() would be a constant when traced
        padding = -left.shape[1] % _CUDA_COLUMNS
        left = functional.pad(left, (0, padding, 0, max(0, _CUDA_ROWS - rows)))
        right = functional.pad(right, (0, padding, 0, -columns % _CUDA_COLUMNS))
        return torch._int_mm(left, right.t())[:rows, :columns]
    return torch._int_mm(left, right.t())


def pack_int4(values: Tensor) -> Tensor:
    """Pack two int4 values into a byte: [..., N] int8 to [..., N / 2] uint8."""
    low, high = (values[..., start::2] & 0xF for start in (0, 1))
    return (low | (high << 4)).view(torch.uint8)


def unpack_int4(packed: Tensor) -> Tensor:
    """Invert :func:`pack_int4`: [..., N / 2] uint8 to [..., N] int8."""
    both = packed.view(torch.int8)
    # Shifting left and back extends the sign.
    return torch.stack([(both << 4) >> 4, both >> 4], dim=-1).flatten(-2)


class QuantizedLinear(nn.Module):
    """Linear layer with a quantized weight.

    Args:
        in_features: number of inputs.
        out_features: number of outputs.
        bits: of a weight: 8, or 4, packed two to a byte.
        group_size: number of neighbouring weights of a row that share a scale; 0: the whole row.
        activations: how inputs are quantized: ``float`` (not at all), ``dynamic`` or ``static``.
        smoothing: whether each input is multiplied by a smoothing scale first (SmoothQuant).
        bias: whether there is a bias.

    Attributes:
        weight: [out_features, in_features] int8; int4: [out_features, in_features / 2] uint8.
        scale: of the weight, [out_features, groups] float32.
        smoothing_scale: [in_features]; None without smoothing.
        input_scale: [1]; None unless static.
        input_zero_point: [1] int32; None unless static.
        zero_point_correction: [out_features] int32, the input zero point times the sum of each
            weight row, which is subtracted from the int8 product; None unless static.
    """

    scale: Tensor
    smoothing_scale: Tensor | None
    input_scale: Tensor
    input_zero_point: Tensor
    zero_point_correction: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bits: int,
        group_size: int,
        activations: str,
        smoothing: bool,
        bias: bool,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.bits, self.group_size, self.activations = bits, group_size, activations
        columns, dtype = (in_features, torch.int8) if bits == 8 else (in_features // 2, torch.uint8)
        self.weight = _frozen(torch.zeros(out_features, columns, dtype=dtype))
        self.bias = _frozen(torch.zeros(out_features)) if bias else None
        groups = in_features // group_size if group_size else 1
        self.register_buffer("scale", torch.ones(out_features, groups))
        self.register_buffer("smoothing_scale", torch.ones(in_features) if smoothing else None)
        static = activations == "static"
        self.register_buffer("input_scale", torch.ones(1) if static else None)
        for name, size in (("input_zero_point", 1), ("zero_point_correction", out_features)):
            integers = torch.zeros(size, dtype=torch.int32) if static else None
            self.register_buffer(name, integers)

    def spec(self) -> dict[str, Any]:
        """Arguments that build a module of the same shape, as plain data."""
        return {
            "in_features": self.in_features,
            "out_features": self.out_features,
            "bits": self.bits,
            "group_size": self.group_size,
            "activations": self.activations,
            "smoothing": self.smoothing_scale is not None,
            "bias": self.bias is not None,
        }

    def forward(self, inputs: Tensor) -> Tensor:
        """[..., in_features] to [..., out_features], of the same dtype."""
        rows = inputs.reshape(-1, self.in_features)
        if self.smoothing_scale is not None:
            rows = rows * self.smoothing_scale
        if self.activations == "float":
            outputs = self._weight_only(rows)
        elif self.activations == "dynamic":
            integers, token_scale = quantize_per_row(rows)
            product = int8_matmul(integers, self.weight)
            outputs = product * (token_scale * self.scale.view(-1))
        else:
            integers = quantize_affine(rows, self.input_scale, self.input_zero_point)
            product = int8_matmul(integers, self.weight) - self.zero_point_correction
            outputs = product * (self.input_scale * self.scale.view(-1))
        if self.bias is not None:
            outputs = outputs + self.bias
        return outputs.to(inputs.dtype).view(*inputs.shape[:-1], self.out_features)

    def _weight_only(self, rows: Tensor) -> Tensor:
        if self.bits == 8 and not self.group_size:
            return functional.linear(rows, self.weight.to(rows.dtype)) * self.scale.view(-1)
        return functional.linear(rows, self.dequantized().to(rows.dtype))

    def weight_count(self) -> int:
        """Number of weights, however they are packed."""
        return self.out_features * self.in_features

    def integer_weight(self) -> Tensor:
        """The unpacked integer weight: [out_features, in_features] int8."""
        return unpack_int4(self.weight) if self.bits == 4 else self.weight

    def dequantized(self) -> Tensor:
        """The weight in floating point: [out_features, in_features]."""
        groups = self.integer_weight().view(self.out_features, self.scale.shape[1], -1)
        return (groups * self.scale.unsqueeze(-1)).view(self.out_features, self.in_features)

    def extra_repr(self) -> str:
        """Arguments of the module, for ``print``."""
        return ", ".join(f"{name}={value}" for name, value in self.spec().items())


class QuantizedEmbedding(nn.Module):
    """Embedding with an int8 weight and one scale per row.

    Args:
        num_embeddings: number of rows.
        embedding_dim: size of each.
        padding_idx: index of the padding row, or None.

    Attributes:
        weight: [num_embeddings, embedding_dim] int8.
        scale: [num_embeddings, 1] float32.
    """

    scale: Tensor

    def __init__(self, num_embeddings: int, embedding_dim: int, *, padding_idx: int | None) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.padding_idx = padding_idx
        self.weight = _frozen(torch.zeros(num_embeddings, embedding_dim, dtype=torch.int8))
        self.register_buffer("scale", torch.ones(num_embeddings, 1))

    def spec(self) -> dict[str, Any]:
        """Arguments that build a module of the same shape, as plain data."""
        return {
            "num_embeddings": self.num_embeddings,
            "embedding_dim": self.embedding_dim,
            "padding_idx": self.padding_idx,
        }

    def forward(self, ids: Tensor) -> Tensor:
        """[...] to [..., embedding_dim]."""
        return functional.embedding(ids, self.weight) * functional.embedding(ids, self.scale)

    def weight_count(self) -> int:
        """Number of weights."""
        return self.weight.numel()

    def dequantized(self) -> Tensor:
        """The weight in floating point: [num_embeddings, embedding_dim]."""
        return self.weight * self.scale

    def extra_repr(self) -> str:
        """Arguments of the module, for ``print``."""
        return f"{self.num_embeddings}, {self.embedding_dim}"


def _frozen(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values, requires_grad=False)


def quantized_module(spec: dict[str, Any]) -> QuantizedLinear | QuantizedEmbedding:
    """Build the module that ``spec()`` describes; its weight is unset."""
    return QuantizedEmbedding(**spec) if "num_embeddings" in spec else QuantizedLinear(**spec)
