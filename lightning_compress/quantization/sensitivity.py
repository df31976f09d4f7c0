"""Sensitivity of a model's predictions to the quantization of each module alone."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from lightning_compress.models.calibration import Calibration, divergence_from
from lightning_compress.models.manifest import require_float
from lightning_compress.quantization.modules import in_place_of_float
from lightning_compress.quantization.precisions import QuantizationConfig
from lightning_compress.quantization.quantize import quantized_modules

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def sensitivities(
    model: "PreTrainedModel",
    config: QuantizationConfig,
    calibration: Calibration,
    *,
    on_progress: Callable[[str], None] = lambda name: None,
) -> dict[str, float]:
    """Quantize one module at a time and measure how far the predictions move.

    Args:
        model: a transformer in eval mode; it stays as it is.
        config: of a scheme with 8 or 4 bits.
        calibration: the examples; their labels are not used.
        on_progress: called with the name of each module that was measured.

    Returns:
        KL divergence of the predictions from the original model's, in nats (see
        :func:`~lightning_compress.models.calibration.divergence_from`), by name of the module,
        largest first.
    """
    require_float(model, "measure the model that it came from")
    modules, _ = quantized_modules(model, config, calibration.batches)
    alone = [{name: module} for name, module in modules.items()]
    found = divergences_with(model, alone, calibration, on_progress=on_progress)
    measured = dict(zip(modules, found, strict=True))
    return dict(sorted(measured.items(), key=lambda item: -item[1]))


@torch.no_grad()
def divergences_with(
    model: "PreTrainedModel",
    groups: Sequence[Mapping[str, nn.Module]],
    calibration: Calibration,
    *,
    on_progress: Callable[[str], None] = lambda name: None,
) -> list[float]:
    """Measure how far the predictions move with each group of quantized modules alone.

    Args:
        model: a transformer in eval mode; it stays as it is.
        groups: quantized modules by name.
        calibration: the examples; their labels are not used.
        on_progress: called with the first name of each group that was measured.

    Returns:
        KL divergence of the predictions from the original model's of each group, in nats.
    """
    logits = [calibration.logits(batch) for batch in calibration.batches]
    found = []
    for modules in groups:
        with in_place_of_float(model, modules):
            found.append(divergence_from(logits, calibration))
        on_progress(next(iter(modules)))
    return found
