"""How much each module's quantization alone moves what the model says."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from lightning_compress.models.calibration import Calibration, divergence_from
from lightning_compress.models.manifest import require_float
from lightning_compress.models.modeling_compressed import put_
from lightning_compress.quantization.quantize import quantized_parts
from lightning_compress.quantization.schemes import Options

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@torch.no_grad()
def sensitivities(
    model: "PreTrainedModel",
    scheme: str,
    calibration: Calibration,
    options: Options,
    *,
    on_progress: Callable[[str], None] = lambda name: None,
) -> dict[str, float]:
    """Quantize one module at a time and see how far the predictions move.

    Args:
        model: a transformer in eval mode; it stays as it is.
        scheme: of whole numbers, as of :func:`~.quantizing.quantize_`.
        calibration: the examples; their labels are not used.
        options: of the scheme.
        on_progress: called with the name of each module that is done.

    Returns:
        Nats (see :func:`~lightning_compress.models.divergence.divergence_from`) by name of the
        module, the largest first.
    """
    require_float(model, "measure the model that it came from")
    made, _ = quantized_parts(model, scheme, calibration.batches, options)
    whole = [calibration.logits(batch) for batch in calibration.batches]
    found = {}
    for name, module in made.items():
        before = model.get_submodule(name)
        put_(model, name, module)
        try:
            found[name] = divergence_from(whole, calibration)
        finally:
            put_(model, name, before)
        on_progress(name)
    return dict(sorted(found.items(), key=lambda one: -one[1]))
