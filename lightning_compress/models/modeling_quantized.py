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

from .modeling_kernels import (
    INPUT_QMAX,
    INPUT_QMIN,
    dequantize,
    dequantized_linear,
    int8_product,
    unpack_int4,
)

QMAX = {8: 127, 7: 63, 4: 7}
"""Largest integer of a symmetrically quantized value, by bits; the smallest is its negative.

Seven bits are stored in int8. They are the range in which int8 products are exact on all CPUs.
"""

MIN_SCALE = 1e-12


def quantize_per_row(values: Tensor, bits: int = 8) -> tuple[Tensor, Tensor]:
    """Quantize symmetrically with one scale per row (the last dimension).

    Args:
        values: [..., N] float.
        bits: 8, 7 or 4.

    Returns:
        Integers [..., N] int8 in [-QMAX[bits], QMAX[bits]], and scales [..., 1] float32.
    """
    scale, qmax = scale_per_row(values, bits), QMAX[bits]
    return (values.float() / scale).round().clamp(-qmax, qmax).to(torch.int8), scale


def scale_per_row(values: Tensor, bits: int = 8) -> Tensor:
    """The smallest scale of each row that clips no value: [..., N] float to [..., 1] float32."""
    values = values.float()
    # Of a large tensor, faster than the largest absolute value, for which all of them are stored.
    largest = torch.maximum(values.amax(-1, keepdim=True), -values.amin(-1, keepdim=True))
    return (largest / QMAX[bits]).clamp(min=MIN_SCALE)


def quantize_affine(values: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """Quantize with one scale and zero point: ``round(values / scale) + zero_point``, clamped.

    Args:
        values: [...] float.
        scale: [1] float32.
        zero_point: [1] int32, the integer that stands for a value of zero.

    Returns:
        [...] int8 in [INPUT_QMIN, INPUT_QMAX].
    """
    return (quantize_centred(values, scale, zero_point) + zero_point).to(torch.int8)


def quantize_centred(values: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """The integers of :func:`quantize_affine` minus the zero point: [...] float32."""
    smallest, largest = (INPUT_QMIN - zero_point).float(), (INPUT_QMAX - zero_point).float()
    integers = (values.detach().float() / scale).round_()
    # In place, and three times as fast as clamping to tensors.
    torch.maximum(integers, smallest, out=integers)
    return torch.minimum(integers, largest, out=integers)


def pack_int4(values: Tensor) -> Tensor:
    """Pack two int4 values into a byte: [..., N] int8 to [..., N / 2] uint8."""
    low, high = (values[..., start::2] & 0xF for start in (0, 1))
    return (low | (high << 4)).view(torch.uint8)


class QuantizedLinear(nn.Module):
    """Linear layer with a quantized weight.

    Args:
        in_features: number of inputs.
        out_features: number of outputs.
        bits: of a weight: 8, 7 (stored in int8), or 4 (packed two to a byte).
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
        columns, dtype = (in_features // 2, torch.uint8) if bits == 4 else (in_features, torch.int8)
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
            outputs = dequantized_linear(rows, self.weight, self.scale, self.bits, self.bias)
        else:
            outputs = self._of_integers(rows.float())
        return outputs.to(inputs.dtype).view(*inputs.shape[:-1], self.out_features)

    def _of_integers(self, rows: Tensor) -> Tensor:
        # Few passes over memory: in eager mode they take as long as the product.
        if self.activations == "dynamic":
            token_scale, scale = scale_per_row(rows), self.scale.view(-1)
            integers = (rows / token_scale).round_()
            product = int8_product(integers, self.weight, None, None) * token_scale
        else:
            scale, zero_point = self.input_scale * self.scale.view(-1), self.input_zero_point
            centred = quantize_centred(rows, self.input_scale, zero_point)
            product = int8_product(centred, self.weight, zero_point, self.zero_point_correction)
        if self.bias is None:
            return product * scale
        return torch.addcmul(self.bias.float(), product.float(), scale.float())

    def weight_count(self) -> int:
        """Number of weights, however they are packed."""
        return self.out_features * self.in_features

    def integer_weight(self) -> Tensor:
        """The unpacked integer weight: [out_features, in_features] int8."""
        return unpack_int4(self.weight) if self.bits == 4 else self.weight

    def dequantized(self) -> Tensor:
        """The weight in floating point: [out_features, in_features]."""
        return dequantize(self.weight, self.scale, self.bits)

    def extra_repr(self) -> str:
        """Arguments of the module, for ``print``."""
        return ", ".join(f"{name}={value}" for name, value in self.spec().items())


class QuantizedEmbedding(nn.Module):
    """Embedding with an int8 weight and one scale per row.

    Args:
        num_embeddings: number of rows.
        embedding_dim: size of each.
        padding_idx: index of the padding row, or None.
        bits: of a weight: 8, or 7, where a linear layer shares it.

    Attributes:
        weight: [num_embeddings, embedding_dim] int8.
        scale: [num_embeddings, 1] float32.
    """

    scale: Tensor

    def __init__(
        self, num_embeddings: int, embedding_dim: int, *, padding_idx: int | None, bits: int = 8
    ) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.padding_idx, self.bits = padding_idx, bits
        # Whoever takes the dtype of a model's first parameter (sentence-transformers) gets a
        # floating-point one.
        self.scale = _frozen(torch.ones(num_embeddings, 1))
        self.weight = _frozen(torch.zeros(num_embeddings, embedding_dim, dtype=torch.int8))

    def spec(self) -> dict[str, Any]:
        """Arguments that build a module of the same shape, as plain data."""
        return {
            "num_embeddings": self.num_embeddings,
            "embedding_dim": self.embedding_dim,
            "padding_idx": self.padding_idx,
            "bits": self.bits,
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


def weights_of(model: nn.Module) -> list[nn.Parameter]:
    """The parameters of a model, without the scales of quantized ones."""
    scales = {each.scale for each in model.modules() if isinstance(each, QuantizedEmbedding)}
    return [parameter for parameter in model.parameters() if parameter not in scales]


def _frozen(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values, requires_grad=False)


def quantized_module(spec: dict[str, Any]) -> QuantizedLinear | QuantizedEmbedding:
    """Build the module that ``spec()`` describes; its weight is unset."""
    return QuantizedEmbedding(**spec) if "num_embeddings" in spec else QuantizedLinear(**spec)
