"""Model families, structure, removal of parts, masks and the manifest of edits."""

from lightning_compress.models.layers import remove_layers_
from lightning_compress.models.manifest import manifest_of
from lightning_compress.models.masks import apply_masks_, masks_of, set_masks_
from lightning_compress.models.proposal import propose_family
from lightning_compress.models.removal import remove_heads_, remove_neurons_
from lightning_compress.models.structure import structure_of, transformer_in, units_of

__all__ = [
    "apply_masks_",
    "manifest_of",
    "masks_of",
    "propose_family",
    "remove_heads_",
    "remove_layers_",
    "remove_neurons_",
    "set_masks_",
    "structure_of",
    "transformer_in",
    "units_of",
]
