"""Quantized linear layers as ONNX operators, with the integer weights and scales that they have.

Activations are uint8 in ONNX Runtime and OpenVINO, whose kernels for uint8 are the fast ones on
x86: each integer and the zero point are 128 larger than in PyTorch. On ARM, ONNX Runtime's kernels
for int8 are the fast ones. TensorRT takes int8, symmetric only.
Source: "ONNX Operators", QuantizeLinear, DequantizeLinear and MatMulInteger,
https://onnx.ai/onnx/operators.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_compress.models.modeling_quantized import (
    MIN_SCALE,
    QMAX,
    QuantizedEmbedding,
    QuantizedLinear,
)
from lightning_compress.quantization.modules import embedding_to_float

OPSET = 21


_UINT8_OFFSET = 128


Reader = Literal["onnxruntime", "onnxruntime-signed", "openvino", "tensorrt"]


class _OnnxLinear(nn.Module):
    """[..., in_features] to [..., out_features]."""

    scale: Tensor
    zero_point: Tensor
    weight_zero_points: Tensor
    input_scale: Tensor

    def __init__(self, layer: QuantizedLinear) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.smoothing_scale = layer.smoothing_scale
        self.register_buffer("scale", layer.scale.view(-1))

    def forward(self, inputs: Tensor) -> Tensor:
        if self.smoothing_scale is not None:
            inputs = inputs * self.smoothing_scale
        outputs = self.product(inputs)
        return outputs if self.bias is None else outputs + self.bias

    def product(self, inputs: Tensor) -> Tensor:
        """The product with the weight, without the bias."""
        raise NotImplementedError


class _DequantizedWeight(_OnnxLinear):
    """Float inputs and a DequantizeLinear of the weight.

    OpenVINO keeps the int8 weight, and quantizes the inputs or not by an option of the session.
    """

    def __init__(self, layer: QuantizedLinear) -> None:
        super().__init__(layer)
        self.register_buffer("weight_zero_points", torch.zeros_like(self.scale, dtype=torch.int8))

    def product(self, inputs: Tensor) -> Tensor:
        quantized = (self.weight, self.scale, self.weight_zero_points)
        weight = _onnx("DequantizeLinear", quantized, torch.float32, self.weight.shape, axis=0)
        return torch.matmul(inputs, weight.t())


class _Static(_DequantizedWeight):
    """Inputs through QuantizeLinear and DequantizeLinear, which runtimes fuse to int8 products."""

    offset, dtype = _UINT8_OFFSET, torch.uint8

    def __init__(self, layer: QuantizedLinear) -> None:
        super().__init__(layer)
        self.register_buffer("input_scale", layer.input_scale.view(()))
        zero_point = layer.input_zero_point.view(()) + self.offset
        self.register_buffer("zero_point", zero_point.to(self.dtype))

    def product(self, inputs: Tensor) -> Tensor:
        qparams = (self.input_scale, self.zero_point)
        integers = _onnx("QuantizeLinear", (inputs, *qparams), self.dtype, inputs.shape)
        dequantized = _onnx("DequantizeLinear", (integers, *qparams), torch.float32, inputs.shape)
        return super().product(dequantized)


class _StaticInt8(_Static):
    """The same with int8 activations."""

    offset, dtype = 0, torch.int8


class _Dynamic(_OnnxLinear):
    """MatMulInteger, with one scale per token."""

    offset, dtype = _UINT8_OFFSET, torch.uint8

    def __init__(self, layer: QuantizedLinear) -> None:
        super().__init__(layer)
        self.register_buffer("zero_point", torch.tensor(self.offset, dtype=self.dtype))

    def product(self, inputs: Tensor) -> Tensor:
        token_scale = (inputs.abs().amax(-1, keepdim=True) / QMAX[8]).clamp(min=MIN_SCALE)
        integers = ((inputs / token_scale).round() + self.offset).to(self.dtype)
        shape = (*inputs.shape[:-1], len(self.weight))
        operands = (integers, self.weight.t(), self.zero_point)
        # Two multiplications: ONNX Runtime 1.31 takes the product of both scales for one scale of
        # all tokens.
        return _onnx("MatMulInteger", operands, torch.int32, shape) * self.scale * token_scale


class _DynamicInt8(_Dynamic):
    """The same with int8 activations."""

    offset, dtype = 0, torch.int8


class _UnpackedWeight(_OnnxLinear):
    """Weight-only for ONNX Runtime: weights are dequantized when the model is loaded.

    They are unpacked by arithmetic, for ONNX Runtime quantizes the inputs of a product with a
    DequantizeLinear, whatever the options of the session.
    """

    def __init__(self, layer: QuantizedLinear) -> None:
        super().__init__(layer)
        self.bits, self.group_scales = layer.bits, layer.scale

    def product(self, inputs: Tensor) -> Tensor:
        integers = self.weight.int()
        if self.bits == 4:
            nibbles = torch.stack([integers % 16, integers // 16], dim=-1).flatten(-2)
            integers = torch.where(nibbles > QMAX[4], nibbles - 16, nibbles)
        weight = integers.view((*self.group_scales.shape, -1)) * self.group_scales.unsqueeze(-1)
        return functional.linear(inputs, weight.flatten(1))


_LAYERS: dict[Reader, dict[str, type[_OnnxLinear]]] = {
    "onnxruntime": {"static": _Static, "dynamic": _Dynamic, "float": _UnpackedWeight},
    "onnxruntime-signed": {"static": _StaticInt8, "dynamic": _DynamicInt8},
    # OpenVINO has no int8 kernels for MatMulInteger; it quantizes dynamically by an option.
    "openvino": {"static": _Static, "dynamic": _DequantizedWeight, "float": _DequantizedWeight},
    "tensorrt": {"static": _StaticInt8},
}


def _onnx(
    name: str,
    operands: Sequence[Tensor],
    dtype: torch.dtype,
    shape: Sequence[int | torch.SymInt],
    **attributes: Any,
) -> Tensor:
    """An ONNX operator in a traced model."""
    return torch.onnx.ops.symbolic(
        name, operands, attributes, dtype=dtype, shape=shape, version=OPSET
    )


@contextmanager
def as_onnx_operators(model: nn.Module, reader: Reader) -> Iterator[None]:
    """Replace a model's quantized layers by ONNX operators within the context.

    Args:
        model: quantized or not. For OpenVINO weight-only and dynamic layers must have int8
            weights; for TensorRT all layers must be static and symmetric.
        reader: the runtime that loads the file.
    """
    layers: dict[str, nn.Module] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, QuantizedLinear):
            layers[name] = _LAYERS[reader][layer.activations](layer)
        elif isinstance(layer, QuantizedEmbedding) and reader == "tensorrt":
            layers[name] = embedding_to_float(layer)  # TensorRT looks up floating-point rows only
    originals = {name: model.get_submodule(name) for name in layers}
    for name, layer in layers.items():
        model.set_submodule(name, layer)
    try:
        yield
    finally:
        for name, layer in originals.items():
            model.set_submodule(name, layer)
