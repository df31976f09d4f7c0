"""The ground: structure, manifest, saving and loading."""

from lightning_compress.models.manifest import manifest_of
from lightning_compress.models.masks import apply_masks_, masks_of, set_masks_
from lightning_compress.models.saving import load_compressed, save_compressed
from lightning_compress.models.structure import structure_of, transformer_in, units_of
from lightning_compress.models.substituting import substitute_layers_
from lightning_compress.models.surgery import remove_heads_, remove_layers_, remove_neurons_

__all__ = [
    "apply_masks_",
    "load_compressed",
    "manifest_of",
    "masks_of",
    "remove_heads_",
    "remove_layers_",
    "remove_neurons_",
    "save_compressed",
    "set_masks_",
    "structure_of",
    "substitute_layers_",
    "transformer_in",
    "units_of",
]
