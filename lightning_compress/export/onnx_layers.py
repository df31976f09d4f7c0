"""Quantized linear layers in operators of ONNX, with the weights and steps that they have.

What is rounded is counted from 0 to 255 there, since the kernels for that are the fast ones: each
whole number is 128 more than in PyTorch, and so is the one that stands for zero. TensorRT alone
counts from -128 to 127, and knows no zero but zero. Source: "ONNX
Operators", QuantizeLinear, DequantizeLinear and MatMulInteger, https://onnx.ai/onnx/operators.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_compress.models.modeling_compressed import put_
from lightning_compress.models.modeling_quantized import (
    MIN_SCALE,
    QMAX,
    QuantizedEmbedding,
    QuantizedLinear,
)
from lightning_compress.quantization.modules import embedding_to_float

OPSET = 21


_MIDDLE = 128


Reader = Literal["onnxruntime", "openvino", "tensorrt"]


class _OnnxLinear(nn.Module):
    """[..., inputs] to [..., outputs]."""

    scale: Tensor
    zero: Tensor
    zeros: Tensor
    input_scale: Tensor

    def __init__(self, layer: QuantizedLinear) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.smoothing_scale = layer.smoothing_scale
        self.register_buffer("scale", layer.scale.view(-1))

    def forward(self, inputs: Tensor) -> Tensor:
        if self.smoothing_scale is not None:
            inputs = inputs * self.smoothing_scale
        found = self.product(inputs)
        return found if self.bias is None else found + self.bias

    def product(self, inputs: Tensor) -> Tensor:
        raise NotImplementedError


class _Static(_OnnxLinear):
    """FakeQuantized, and taken back: runtimes make a product of whole numbers of these pairs."""

    middle, kind = _MIDDLE, torch.uint8

    def __init__(self, layer: QuantizedLinear) -> None:
        super().__init__(layer)
        assert layer.input_scale is not None
        self.register_buffer("input_scale", layer.input_scale.view(()))
        self.register_buffer("zero", (layer.input_zero_point.view(()) + self.middle).to(self.kind))
        self.register_buffer("zeros", torch.zeros_like(self.scale, dtype=torch.int8))

    def product(self, inputs: Tensor) -> Tensor:
        grid = (self.input_scale, self.zero)
        numbers = _onnx("QuantizeLinear", (inputs, *grid), self.kind, inputs.shape)
        taken_back = _onnx("DequantizeLinear", (numbers, *grid), torch.float32, inputs.shape)
        rows = (self.weight, self.scale, self.zeros)
        weight = _onnx("DequantizeLinear", rows, torch.float32, self.weight.shape, axis=0)
        return torch.matmul(taken_back, weight.t())


class _Signed(_Static):
    """The same counted from -128 to 127."""

    middle, kind = 0, torch.int8


class _Dynamic(_OnnxLinear):
    """A product of whole numbers, with a step of each token's own."""

    def __init__(self, layer: QuantizedLinear) -> None:
        super().__init__(layer)
        self.register_buffer("zero", torch.tensor(_MIDDLE, dtype=torch.uint8))

    def product(self, inputs: Tensor) -> Tensor:
        own = (inputs.abs().amax(-1, keepdim=True) / QMAX[8]).clamp(min=MIN_SCALE)
        numbers = ((inputs / own).round() + _MIDDLE).to(torch.uint8)
        shape = (*inputs.shape[:-1], len(self.weight))
        given = (numbers, self.weight.t(), self.zero)
        # One after the other: a product of both ONNX Runtime 1.31 takes for one step of all tokens.
        return _onnx("MatMulInteger", given, torch.int32, shape) * self.scale * own


class _Unpacked(_OnnxLinear):
    """Weights that are taken back to floating point when the model is opened.

    ONNX Runtime would round what meets a DequantizeLinear, asked or not.
    """

    def __init__(self, layer: QuantizedLinear) -> None:
        super().__init__(layer)
        self.bits, self.groups = layer.bits, layer.scale

    def product(self, inputs: Tensor) -> Tensor:
        numbers = self.weight.int()
        if self.bits == 4:
            pairs = torch.stack([numbers % 16, numbers // 16], dim=-1).flatten(-2)
            numbers = torch.where(pairs > QMAX[4], pairs - 16, pairs)
        weight = numbers.view((*self.groups.shape, -1)) * self.groups.unsqueeze(-1)
        return functional.linear(inputs, weight.flatten(1))


class _LeftToIt(_OnnxLinear):
    """Weights in whole numbers, which the runtime multiplies as it is told when it runs."""

    def __init__(self, layer: QuantizedLinear) -> None:
        super().__init__(layer)
        self.register_buffer("zeros", torch.zeros_like(self.scale, dtype=torch.int8))

    def product(self, inputs: Tensor) -> Tensor:
        rows = (self.weight, self.scale, self.zeros)
        weight = _onnx("DequantizeLinear", rows, torch.float32, self.weight.shape, axis=0)
        return torch.matmul(inputs, weight.t())


_FORMS: dict[Reader, dict[str, type[_OnnxLinear]]] = {
    "onnxruntime": {"static": _Static, "dynamic": _Dynamic, "float": _Unpacked},
    # Told to round, it multiplies whole numbers; of what ONNX spells out it does not.
    "openvino": {"static": _Static, "dynamic": _LeftToIt, "float": _LeftToIt},
    "tensorrt": {"static": _Signed},
}


def _onnx(
    name: str,
    given: Sequence[Tensor],
    dtype: torch.dtype,
    shape: Sequence[int | torch.SymInt],
    **attributes: Any,
) -> Tensor:
    """An operator of ONNX in what is traced."""
    return torch.onnx.ops.symbolic(name, given, attributes, dtype=dtype, shape=shape, version=OPSET)


@contextmanager
def in_onnx_forms(model: nn.Module, reader: Reader) -> Iterator[None]:
    """Put what ONNX computes with in the place of a model's quantized layers meanwhile.

    Args:
        model: quantized or not. For OpenVINO weights that meet inputs without fixed steps are of
            eight bits; for TensorRT all steps of inputs are fixed, and counted from zero.
        reader: what will run the file.
    """
    put: dict[str, nn.Module] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, QuantizedLinear):
            put[name] = _FORMS[reader][layer.activations](layer)
        elif isinstance(layer, QuantizedEmbedding) and reader == "tensorrt":
            put[name] = embedding_to_float(layer)  # it looks nothing up in whole numbers
    before = {name: model.get_submodule(name) for name in put}
    for name, form in put.items():
        put_(model, name, form)
    try:
        yield
    finally:
        for name, layer in before.items():
            put_(model, name, layer)
