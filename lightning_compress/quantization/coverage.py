"""What of a model is quantized, and what is not."""

from dataclasses import dataclass

from torch import nn

from lightning_compress.models.manifest import manifest_of
from lightning_compress.models.modeling_quantized import QuantizedEmbedding, QuantizedLinear
from lightning_compress.models.quantized import QUANTIZATION_EDIT


@dataclass(frozen=True)
class Coverage:
    """What of a model is quantized.

    Args:
        quantized: number of weights, by name of the module; of the parameter if all is cast.
        kept: why a module with weights is not, by its name.
        share: of all parameters that are quantized, in [0, 1]; shared ones count once.
    """

    quantized: dict[str, int]
    kept: dict[str, str]
    share: float


def coverage_of(model: nn.Module) -> Coverage:
    """What of a model is quantized; nothing of one that is not."""
    edits = [edit for edit in manifest_of(model) if edit["edit"] == QUANTIZATION_EDIT]
    if edits and "dtype" in edits[0]:
        return Coverage({name: p.numel() for name, p in model.named_parameters()}, {}, 1.0)
    made = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, QuantizedLinear | QuantizedEmbedding)
    }
    quantized = {name: module.count() for name, module in made.items()}
    within = sum({module.weight: module.count() for module in made.values()}.values())
    rest = sum(p.numel() for p in model.parameters() if p.is_floating_point())
    kept = edits[0]["kept"] if edits else {}
    return Coverage(quantized, dict(kept), within / (within + rest))
