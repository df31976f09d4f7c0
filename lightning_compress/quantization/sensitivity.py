"""Sensitivity of a model's predictions to the quantization of each module alone."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from lightning_compress.models.calibration import Calibration, divergence_from
from lightning_compress.models.manifest import require_float
from lightning_compress.quantization.precisions import QuantizationConfig
from lightning_compress.quantization.quantize import quantized_modules

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@torch.no_grad()
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
    logits = [calibration.logits(batch) for batch in calibration.batches]
    measured = {}
    for name, module in modules.items():
        original = model.get_submodule(name)
        model.set_submodule(name, module)
        try:
            measured[name] = divergence_from(logits, calibration)
        finally:
            model.set_submodule(name, original)
        on_progress(name)
    return dict(sorted(measured.items(), key=lambda item: -item[1]))
