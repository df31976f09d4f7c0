"""A student initialized from every n-th layer of its teacher.

Source: Sanh et al., "DistilBERT, a distilled version of BERT", 2019,
https://arxiv.org/abs/1910.01108.
"""

from typing import TYPE_CHECKING

import numpy as np

from lightning_compress.errors import InputError
from lightning_compress.models import manifest_of
from lightning_compress.models.families import FAMILIES
from lightning_compress.models.layers import remove_layers_
from lightning_compress.models.manifest import set_manifest_
from lightning_compress.models.structure import structure_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def keep_every_nth_layer_(model: "PreTrainedModel", n: int) -> None:
    """Keep every n-th layer, in place: evenly spaced, including the first and the last one.

    If a single layer is kept, it is the first. The result counts as a dense model: the removal is
    not recorded in the manifest.

    Args:
        model: a transformer of a known family.
        n: keep one layer of every ``n``.

    Raises:
        InputError: ``n`` is below 2 or above the number of layers, or the layers share one block.
    """
    structure = structure_of(model)
    if FAMILIES[structure.family].shared:
        raise InputError(
            "model.every_nth_layer: the layers of the teacher are one block, used again and again; "
            "name it in model.pretrained and give model.config fewer num_hidden_layers"
        )
    count = len(structure.layers)
    if not 2 <= n <= count:
        raise InputError(
            f"model.every_nth_layer is {n}: the teacher has {count} layers, so it lies between 2 "
            f"and {count}"
        )
    kept = np.linspace(0, count - 1, -(-count // n)).round()
    before = list(manifest_of(model))
    remove_layers_(model, [layer for layer in range(count) if layer not in kept])
    set_manifest_(model, before)
