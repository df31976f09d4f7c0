"""A student made of every n-th layer of its teacher.

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
    """Leave a model every n-th layer: evenly spread, the first and the last among them.

    Where one layer stays, it is the first.

    It is a model of its own then, not a compressed one: its manifest does not tell of the layers.

    Args:
        model: a transformer of a known family.
        n: one layer of so many stays.

    Raises:
        InputError: ``n`` is below 2, or more than there are layers, or the layers are one block.
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
