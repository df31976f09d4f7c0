"""Quantized modules of a model: which they are, and how they come back.

Quantized modules made of floating-point ones.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_compress.models.manifest import QUANTIZATION_EDIT, Edit
from lightning_compress.models.modeling_compressed import put_
from lightning_compress.models.modeling_quantized import (
    LIMITS,
    QuantizedEmbedding,
    QuantizedLinear,
    pack_pairs,
    quantized_module,
    round_rows,
)


def quantized_specs(model: nn.Module) -> dict[str, dict[str, Any]]:
    """What the quantized modules of a model are, as plain data, by name."""
    return {
        name: module.spec()
        for name, module in model.named_modules()
        if isinstance(module, QuantizedLinear | QuantizedEmbedding)
    }


def place_quantized_(model: nn.Module, specs: Mapping[str, Mapping[str, Any]]) -> None:
    """Give a model modules as of :func:`quantized_specs`, in place; their weights are unset."""
    there = quantized_specs(model)
    for name, spec in specs.items():
        if there.get(name) != spec:
            device = model.get_submodule(name).weight.device
            put_(model, name, quantized_module(dict(spec)).to(device))  # type: ignore[arg-type]


def cast_as_recorded_(model: nn.Module, edits: Iterable[Edit]) -> None:
    """Cast a model to the type of sixteen bits that edits name, if they do."""
    for edit in edits:
        if edit["edit"] == QUANTIZATION_EDIT and "dtype" in edit:
            model.to(getattr(torch, edit["dtype"]))


@torch.no_grad()
def quantized_embedding(module: Any) -> QuantizedEmbedding:
    """The quantized module of an ``nn.Embedding``."""
    made = QuantizedEmbedding(
        module.num_embeddings, module.embedding_dim, padding=module.padding_idx
    ).to(module.weight.device)
    numbers, step = round_rows(module.weight)
    made.weight.copy_(numbers)
    made.step.copy_(step)
    return made.train(module.training)


def float_embedding(module: QuantizedEmbedding) -> nn.Embedding:
    """An ``nn.Embedding`` that says what a quantized one says."""
    made = nn.Embedding(module.num_embeddings, module.embedding_dim)
    made.weight = nn.Parameter(module.dequantized(), requires_grad=False)
    return made.train(module.training)


@torch.no_grad()
def fill_(
    made: QuantizedLinear,
    matrix: Tensor,
    *,
    step: Tensor | None = None,
    input_step: Tensor | None = None,
    input_zero: Tensor | None = None,
) -> None:
    """Round a weight into a quantized linear layer, in place.

    Args:
        made: the layer; its factors, if it has some, are set.
        matrix: the weight before the factors, [outputs, inputs].
        step: of each row, [outputs, 1]; None: the least by which nothing is cut off.
        input_step: of a static layer, [1].
        input_zero: of a static layer, [1] int32.
    """
    matrix = matrix.float()
    if made.factor is not None:
        matrix = matrix / made.factor
    if step is None:
        groups = matrix.reshape(len(matrix), made.step.shape[1], -1)
        numbers, steps = round_rows(groups, made.bits)
        numbers, step = numbers.reshape(matrix.shape), steps.squeeze(-1)
    else:
        limit = LIMITS[made.bits]
        numbers = (matrix / step).round().clamp(-limit, limit).to(torch.int8)
    made.weight.copy_(pack_pairs(numbers) if made.bits == 4 else numbers)
    made.step.copy_(step)
    if input_step is not None and input_zero is not None:
        made.input_step.copy_(input_step)
        made.input_zero.copy_(input_zero)
        made.surplus.copy_(numbers.sum(1, dtype=torch.int32) * input_zero)
