"""Quantization-aware training: a model prepared with fake-quantized layers, to be trained."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_compress.errors import InputError
from lightning_compress.models.manifest import (
    PREPARATION_EDIT,
    QUANTIZATION_EDIT,
    manifest_of,
    set_manifest_,
)
from lightning_compress.models.modeling_quantized import QuantizedLinear
from lightning_compress.quantization.fake_quantized import fake_quantized
from lightning_compress.quantization.precisions import (
    PrecisionName,
    QuantizationConfig,
    config_from,
)
from lightning_compress.quantization.quantize import check_quantization, quantized_modules
from lightning_compress.types import Batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@torch.no_grad()
def prepare_(
    model: "PreTrainedModel",
    config: PrecisionName | QuantizationConfig,
    *,
    calibration_batches: Sequence[Batch] = (),
    technique: str = QUANTIZATION_EDIT,
) -> None:
    """Replace the layers of a model by fake-quantized ones, in place.

    The forward pass is from then on bit-identical to the quantized model's, and the model can be
    trained; :func:`~lightning_compress.quantization.fake_quantized.convert_` makes it the quantized
    one. Parameters are the same objects under the same names. ``int8-static`` also learns its
    scales, by additional parameters of each layer, see
    :class:`~lightning_compress.quantization.fake_quantized.FakeQuantLinear`.

    Args:
        model: a transformer.
        config: a scheme with 8 or 4 bits by name, or all options.
        calibration_batches: see :func:`~lightning_compress.quantization.quantize_`.
        technique: name of the edit in the report.

    Raises:
        InputError: as :func:`~lightning_compress.quantization.quantize_`, or the scheme or
            the weights have 16 bits. The model is then unchanged.
    """
    config = config_from(config)
    check_preparation(model, config)
    modules, skipped = quantized_modules(model, config, calibration_batches)
    weights: set[Tensor] = set()
    for name, module in modules.items():
        original: Any = model.get_submodule(name)
        layer: Any = fake_quantized(
            original, module.spec(), learn_weight_scale=original.weight not in weights
        )
        weights.add(original.weight)
        model.set_submodule(name, layer)
        if isinstance(module, QuantizedLinear):
            _copy_qparams_(layer, module)
    edit = {
        "edit": PREPARATION_EDIT,
        "scheme": config.scheme,
        "technique": technique,
        "skipped": skipped,
    }
    set_manifest_(model, [*manifest_of(model), edit])


def _copy_qparams_(layer: Any, module: QuantizedLinear) -> None:
    """Give a fake-quantized layer the quantization parameters of a quantized module."""
    if module.smoothing_scale is not None:
        layer.smoothing_scale.copy_(module.smoothing_scale)
    if module.activations == "static":
        if layer.weight_scale is not None:
            layer.weight_scale.copy_(module.scale.view(-1))
        layer.input_scale.copy_(module.input_scale)
        layer.input_zero_point.copy_(module.input_zero_point)


def check_preparation(model: "PreTrainedModel", config: QuantizationConfig) -> None:
    """Check that a model can be prepared, before calibration examples are there.

    Raises:
        InputError: it cannot, see :func:`prepare_`.
    """
    if config.precision.dtype is not None:
        raise InputError(
            f"{config.scheme} needs no quantization-aware training: train with trainer.precision "
            "bf16-mixed or 16-mixed, and quantize the result"
        )
    if model.dtype in (torch.float16, torch.bfloat16):
        raise InputError(
            f"{type(model).__name__} has weights of {model.dtype}, in which the small updates of "
            "weights and scales would be lost: load it in float32 and train with trainer.precision "
            "bf16-mixed or 16-mixed"
        )
    check_quantization(model, config)
