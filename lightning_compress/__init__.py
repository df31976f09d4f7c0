"""Make a Hugging Face transformer small and fast with PyTorch Lightning, and prove it."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_compress.evaluation import measure_footprint, measure_latency
    from lightning_compress.models import remove_heads_, remove_neurons_, structure_of
    from lightning_compress.models.layers import remove_layers_
    from lightning_compress.quantization import quantize_
    from lightning_compress.saving import load_compressed, save_compressed
    from lightning_compress.substitution.edit import substitute_layers_

# Looked up when first used: the command line starts without importing torch.
_HOMES = {
    "load_compressed": "saving",
    "measure_footprint": "evaluation",
    "measure_latency": "evaluation",
    "quantize_": "quantization",
    "remove_heads_": "models",
    "remove_layers_": "models",
    "remove_neurons_": "models",
    "save_compressed": "saving",
    "structure_of": "models",
    "substitute_layers_": "substitution.edit",
}

__all__ = [
    "load_compressed",
    "measure_footprint",
    "measure_latency",
    "quantize_",
    "remove_heads_",
    "remove_layers_",
    "remove_neurons_",
    "save_compressed",
    "structure_of",
    "substitute_layers_",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
