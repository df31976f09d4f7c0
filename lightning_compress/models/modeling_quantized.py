"""Linear layers and embeddings whose weights are whole numbers of eight or four bits.

This file needs torch only. It lies in the folder of every quantized model, beside
``modeling_compressed.py``, which builds these modules by the ``quantized_modules`` in
``config.json``.

A weight is a whole number times a step, which a row shares (of four bits, a group of neighbours in
a row). What a linear layer multiplies it with stays as it is, or is rounded too: in steps of each
token's own (dynamic) or in steps found once on examples (static); then whole numbers are multiplied
and added up exactly. Source: Jacob et al., "Quantization and Training of Neural Networks for
Efficient Integer-Arithmetic-Only Inference", 2018, https://arxiv.org/abs/1712.05877.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

LIMITS = {8: 127, 4: 7}
"""The largest whole number of so many bits; the smallest is its negative, so zero stays zero."""

INPUTS = (-128, 127)
"""The whole numbers for inputs with fixed steps: all there are, any of which may stand for zero."""

SMALLEST_STEP = 1e-12
# What multiplies whole numbers on CUDA takes more rows than these, and columns by the eight.
_CUDA_ROWS, _CUDA_COLUMNS = 17, 8


def round_rows(values: Tensor, bits: int = 8) -> tuple[Tensor, Tensor]:
    """Round to whole multiples of a step of each row, the last dimension.

    Args:
        values: [..., N] float.
        bits: 8 or 4.

    Returns:
        Whole numbers [..., N] int8, and steps [..., 1] float32.
    """
    values, limit = values.float(), LIMITS[bits]
    step = (values.abs().amax(-1, keepdim=True) / limit).clamp(min=SMALLEST_STEP)
    return (values / step).round().clamp(-limit, limit).to(torch.int8), step


def round_by(values: Tensor, step: Tensor, zero: Tensor) -> Tensor:
    """Round to whole multiples of a step, counted from ``zero`` on: [...] float to int8."""
    return ((values.float() / step).round() + zero).clamp(*INPUTS).to(torch.int8)


def multiply(left: Tensor, right: Tensor) -> Tensor:
    """Exact products of whole numbers: [M, K] int8 by [N, K] int8 gives [M, N] int32."""
    if left.is_cuda:
        rows, columns = left.shape[0], right.shape[0]  # len() would fix them in what is traced
        spare = -left.shape[1] % _CUDA_COLUMNS
        left = functional.pad(left, (0, spare, 0, max(0, _CUDA_ROWS - rows)))
        right = functional.pad(right, (0, spare, 0, -columns % _CUDA_COLUMNS))
        return torch._int_mm(left, right.t())[:rows, :columns]
    return torch._int_mm(left, right.t())


def pack_pairs(values: Tensor) -> Tensor:
    """Two numbers of four bits in a byte: [..., N] int8 to [..., N / 2] uint8."""
    low, high = (values[..., start::2] & 0xF for start in (0, 1))
    return (low | (high << 4)).view(torch.uint8)


def unpack_pairs(packed: Tensor) -> Tensor:
    """The numbers of :func:`pack_pairs`: [..., N / 2] uint8 to [..., N] int8."""
    both = packed.view(torch.int8)
    # Shifting left and back brings the sign along.
    return torch.stack([(both << 4) >> 4, both >> 4], dim=-1).flatten(-2)


class QuantizedLinear(nn.Module):
    """A linear layer with a quantized weight.

    Args:
        inputs: number of inputs.
        outputs: number of outputs.
        bits: of a weight: 8, or 4, of which two make a byte.
        group: how many neighbouring weights of a row share a step; 0: all of them.
        activations: how the inputs are rounded: ``float`` (not), ``dynamic`` or ``static``.
        smooth: whether each input has a factor of its own before it is rounded.
        bias: whether there is a bias.

    Attributes:
        weight: [outputs, inputs] int8; of 4 bits [outputs, inputs / 2] uint8.
        step: [outputs, groups] float32.
        factor: [inputs], only if smooth.
        input_step: [1], only if static.
        input_zero: [1] int32, only if static: the whole number that stands for an input of zero.
        surplus: [outputs] int32, only if static: what these zeros add to each output.
    """

    step: Tensor
    factor: Tensor | None
    input_step: Tensor
    input_zero: Tensor
    surplus: Tensor

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        bits: int,
        group: int,
        activations: str,
        smooth: bool,
        bias: bool,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = inputs, outputs
        self.bits, self.group, self.activations = bits, group, activations
        columns, kind = (inputs, torch.int8) if bits == 8 else (inputs // 2, torch.uint8)
        self.weight = _fixed(torch.zeros(outputs, columns, dtype=kind))
        self.bias = _fixed(torch.zeros(outputs)) if bias else None
        self.register_buffer("step", torch.ones(outputs, inputs // group if group else 1))
        self.register_buffer("factor", torch.ones(inputs) if smooth else None)
        static = activations == "static"
        self.register_buffer("input_step", torch.ones(1) if static else None)
        for name, size in (("input_zero", 1), ("surplus", outputs)):
            whole = torch.zeros(size, dtype=torch.int32) if static else None
            self.register_buffer(name, whole)

    def spec(self) -> dict[str, Any]:
        """What builds another of its kind."""
        return {
            "inputs": self.in_features,
            "outputs": self.out_features,
            "bits": self.bits,
            "group": self.group,
            "activations": self.activations,
            "smooth": self.factor is not None,
            "bias": self.bias is not None,
        }

    def forward(self, inputs: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs], of the same type."""
        rows = inputs.reshape(-1, self.in_features)
        if self.factor is not None:
            rows = rows * self.factor
        if self.activations == "float":
            found = self._by_floats(rows)
        elif self.activations == "dynamic":
            numbers, own = round_rows(rows)
            found = multiply(numbers, self.weight) * (own * self.step.view(-1))
        else:
            numbers = round_by(rows, self.input_step, self.input_zero)
            whole = multiply(numbers, self.weight) - self.surplus
            found = whole * (self.input_step * self.step.view(-1))
        if self.bias is not None:
            found = found + self.bias
        return found.to(inputs.dtype).view(*inputs.shape[:-1], self.out_features)

    def _by_floats(self, rows: Tensor) -> Tensor:
        if self.bits == 8 and not self.group:
            return functional.linear(rows, self.weight.to(rows.dtype)) * self.step.view(-1)
        return functional.linear(rows, self.dequantized().to(rows.dtype))

    def count(self) -> int:
        """Number of weights."""
        return self.out_features * self.in_features

    def dequantized(self) -> Tensor:
        """The weight in floating point: [outputs, inputs]."""
        numbers = unpack_pairs(self.weight) if self.bits == 4 else self.weight
        grouped = numbers.view(self.out_features, self.step.shape[1], -1)
        return (grouped * self.step.unsqueeze(-1)).view(self.out_features, self.in_features)

    def extra_repr(self) -> str:
        """What a print shows."""
        return ", ".join(f"{name}={value}" for name, value in self.spec().items())


class QuantizedEmbedding(nn.Module):
    """An embedding whose rows are of eight bits, with a step of each row.

    Args:
        rows: number of embeddings.
        width: of each.
        padding: index of the row for padding, or None.
    """

    step: Tensor

    def __init__(self, rows: int, width: int, *, padding: int | None) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim, self.padding_idx = rows, width, padding
        self.weight = _fixed(torch.zeros(rows, width, dtype=torch.int8))
        self.register_buffer("step", torch.ones(rows, 1))

    def spec(self) -> dict[str, Any]:
        """What builds another of its kind."""
        return {
            "rows": self.num_embeddings,
            "width": self.embedding_dim,
            "padding": self.padding_idx,
        }

    def forward(self, ids: Tensor) -> Tensor:
        """[...] to [..., width]."""
        return functional.embedding(ids, self.weight) * functional.embedding(ids, self.step)

    def count(self) -> int:
        """Number of weights."""
        return self.weight.numel()

    def dequantized(self) -> Tensor:
        """The embeddings in floating point: [rows, width]."""
        return self.weight * self.step

    def extra_repr(self) -> str:
        """What a print shows."""
        return f"{self.num_embeddings}, {self.embedding_dim}"


def _fixed(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values, requires_grad=False)


def quantized_module(spec: dict[str, Any]) -> QuantizedLinear | QuantizedEmbedding:
    """Build what ``spec()`` describes; its weights are unset."""
    return QuantizedEmbedding(**spec) if "rows" in spec else QuantizedLinear(**spec)
