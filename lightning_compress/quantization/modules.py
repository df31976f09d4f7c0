"""Quantized modules made from floating-point ones, and how a model gets them back when restored."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_compress.models.manifest import StatePart
from lightning_compress.models.modeling_quantized import (
    QMAX,
    QuantizedEmbedding,
    QuantizedLinear,
    pack_int4,
    quantize_per_row,
    quantized_module,
)
from lightning_compress.models.structure import output_dim
from lightning_compress.quantization.activation_stats import (
    ActivationStats,
    choose_qparams,
    smoothing_scale,
)
from lightning_compress.quantization.precisions import QuantizationConfig

Quantized = QuantizedLinear | QuantizedEmbedding


def quantized_specs(model: nn.Module) -> dict[str, dict[str, Any]]:
    """The ``spec()`` of each quantized module of a model, by name, as plain data."""
    return {
        name: module.spec()
        for name, module in model.named_modules()
        if isinstance(module, Quantized)
    }


def is_in_full_range(model: nn.Module) -> bool:
    """Whether int8 products of a model have weights beyond ±63, see ``QuantizationConfig``."""
    layers = [layer for layer in model.modules() if isinstance(layer, QuantizedLinear)]
    return any(layer.activations != "float" and layer.bits == 8 for layer in layers)


def place_quantized_(model: nn.Module, specs: Mapping[str, Mapping[str, Any]]) -> None:
    """Give a model the modules of :func:`quantized_specs`, in place; their weights are unset."""
    present = quantized_specs(model)
    for name, spec in specs.items():
        if present.get(name) != spec:
            device = next(model.get_submodule(name).parameters()).device
            model.set_submodule(name, quantized_module(dict(spec)).to(device))


@contextmanager
def in_place_of_float(model: nn.Module, modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """Give a model quantized modules, by name, and its own back afterwards."""
    originals = {name: model.get_submodule(name) for name in modules}
    try:
        for name, module in modules.items():
            model.set_submodule(name, module)
        yield
    finally:
        for name, original in originals.items():
            model.set_submodule(name, original)


QUANTIZED = StatePart("quantized", quantized_specs, place_quantized_)


@torch.no_grad()
def embedding_factor(module: nn.Embedding) -> float | None:
    """What an embedding multiplies its rows by: 1, but ``embed_scale`` in Gemma and BART.

    None if the module computes anything else, which is tried on a few of its rows.
    """
    factor = float(getattr(module, "embed_scale", 1.0))
    if module.max_norm is not None or set(module._parameters) != {"weight"}:
        return None
    if type(module) is nn.Embedding:
        return 1.0
    rows = module.weight[:4]
    try:
        found = module(torch.arange(len(rows), device=rows.device))
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError):  # other arguments
        return None
    same = isinstance(found, Tensor) and found.shape == rows.shape
    return factor if same and torch.allclose(found, rows * factor, rtol=0.01) else None


@torch.no_grad()
def embedding_from_float(
    module: nn.Embedding, bits: int, factor: float | None = None
) -> QuantizedEmbedding:
    """Quantize an embedding to 8 or 7 bits, one scale per row.

    Args:
        module: an ``nn.Embedding``, or one that multiplies its rows by a factor.
        bits: of a weight.
        factor: of the rows, which becomes part of the scales; None: :func:`embedding_factor`.
    """
    factor = embedding_factor(module) if factor is None else factor
    assert factor is not None  # other embeddings are not selected
    made = QuantizedEmbedding(
        module.num_embeddings, module.embedding_dim, padding_idx=module.padding_idx, bits=bits
    ).to(module.weight.device)
    integers, scale = quantize_per_row(module.weight, bits)
    made.weight.copy_(integers)
    made.scale.copy_(scale * factor)
    return made.train(module.training)


def embedding_to_float(module: QuantizedEmbedding) -> nn.Embedding:
    """An ``nn.Embedding`` with the same outputs."""
    made = nn.Embedding(module.num_embeddings, module.embedding_dim)
    made.weight = nn.Parameter(module.dequantized(), requires_grad=False)
    return made.train(module.training)


def linear_weight(module: Any) -> Tensor:
    """The weight of an ``nn.Linear`` or ``Conv1D``, [out_features, in_features]."""
    weight: Tensor = module.weight
    return weight if output_dim(module) == 0 else weight.t()


def linear_from_float(
    module: Any,
    config: QuantizationConfig,
    bits: int,
    *,
    stats: ActivationStats | None,
    smooth_alpha: float | None,
) -> QuantizedLinear:
    """Quantize an ``nn.Linear`` or ``Conv1D``, which stays as it is; the bias is shared.

    Args:
        module: the layer.
        config: activations, observer, symmetry and group size.
        bits: of its weight; those of ``config`` unless the weight is an embedding's.
        stats: of its inputs; needed for static precisions and for smoothing.
        smooth_alpha: strength of SmoothQuant, or None.
    """
    weight = linear_weight(module)
    out_features, in_features = weight.shape
    made = QuantizedLinear(
        in_features,
        out_features,
        bits=bits,
        group_size=config.group_size if bits == 4 else 0,
        activations=config.precision.activations,
        smoothing=smooth_alpha is not None,
        bias=module.bias is not None,
    ).to(weight.device)
    made.bias = module.bias
    if made.smoothing_scale is not None and smooth_alpha is not None and stats is not None:
        max_abs = stats.max.maximum(-stats.min)
        made.smoothing_scale.copy_(smoothing_scale(weight.float(), max_abs, smooth_alpha))
        stats = stats.scaled(made.smoothing_scale)
    input_scale = zero_point = None
    if config.precision.needs_calibration:
        assert stats is not None  # callers require calibration examples
        input_scale, zero_point = choose_qparams(stats, config.observer, symmetric=config.symmetric)
    pack_weights_(made, weight, input_scale=input_scale, input_zero_point=zero_point)
    return made.train(module.training)


@torch.no_grad()
def pack_weights_(
    layer: QuantizedLinear,
    weight: Tensor,
    *,
    scale: Tensor | None = None,
    input_scale: Tensor | None = None,
    input_zero_point: Tensor | None = None,
) -> None:
    """Quantize a weight into a quantized linear layer, in place.

    Args:
        layer: its smoothing scale, if it has one, is set.
        weight: before smoothing, [out_features, in_features] float.
        scale: of each row, [out_features, 1]; None: the smallest that clips no weight.
        input_scale: of a static layer, [1].
        input_zero_point: of a static layer, [1] int32.
    """
    weight = weight.float()
    if layer.smoothing_scale is not None:
        weight = weight / layer.smoothing_scale
    if scale is None:
        groups = weight.reshape(len(weight), layer.scale.shape[1], -1)
        integers, scales = quantize_per_row(groups, layer.bits)
        integers, scale = integers.reshape(weight.shape), scales.squeeze(-1)
    else:
        qmax = QMAX[layer.bits]
        integers = (weight / scale).round().clamp(-qmax, qmax).to(torch.int8)
    layer.weight.copy_(pack_int4(integers) if layer.bits == 4 else integers)
    layer.scale.copy_(scale)
    if input_scale is not None and input_zero_point is not None:
        layer.input_scale.copy_(input_scale)
        layer.input_zero_point.copy_(input_zero_point)
        layer.zero_point_correction.copy_(integers.sum(1, dtype=torch.int32) * input_zero_point)
