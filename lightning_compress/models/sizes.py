"""The sizes that modules store of themselves: kept true when units are removed, and restored."""

import inspect
from collections.abc import Sequence
from typing import Any

from torch import nn

from lightning_compress.models.families import FAMILIES
from lightning_compress.models.manifest import StatePart
from lightning_compress.models.modeling_compressed import resize_
from lightning_compress.models.structure import (
    Units,
    inputs_of,
    linear_at,
    outputs_of,
    structure_of,
)


def sizes_of(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Sizes of the blocks' linear layers and attention; empty if the family is unknown.

    Attributes of modules by the name of the module, as ``modeling_compressed.resize_`` takes them.
    """
    if getattr(getattr(model, "config", None), "model_type", None) not in FAMILIES:
        return {}
    structure = structure_of(model)
    entry = FAMILIES[structure.family]
    names = [
        *structure.linear_names(predecessors=True),
        *(
            f"{block}.{entry.attention}"
            for block in (*structure.blocks, *structure.predecessors)
            if entry.counts
        ),
    ]
    attributes = ("in_features", "out_features", "nx", "nf", "kept_heads", *entry.counts)
    modules = {name: model.get_submodule(name) for name in names}
    sizes = {
        name: {a: getattr(module, a) for a in attributes if a in vars(module)}
        for name, module in modules.items()
    }
    if entry.shared_bias is not None:
        for name in (f"{block}.{entry.attention}" for block in structure.blocks):
            sizes[name].setdefault("kept_heads", None)
    return sizes


SIZES = StatePart("sizes", sizes_of, resize_, shape=True)


def update_sizes_(model: nn.Module, units: Units) -> None:
    """Update the attributes in which modules store their sizes."""
    for name in (*units.inputs, *units.relative, units.output):
        module = linear_at(model, name)
        sizes = {"in_features": inputs_of(module), "out_features": outputs_of(module)}
        if not isinstance(module, nn.Linear):
            sizes = {"nx": sizes["in_features"], "nf": sizes["out_features"]}
        for attribute, size in sizes.items():
            setattr(module, attribute, size)
    if units.kind == "neurons":
        return
    structure = structure_of(model)
    entry = FAMILIES[structure.family]
    attention = model.get_submodule(f"{structure.blocks[units.layer]}.{entry.attention}")
    width = outputs_of(linear_at(model, units.inputs[0])) // units.parts
    sizes = {"width": width, "heads": width // int(getattr(attention, entry.head_size))}
    for attribute, what in entry.counts.items():
        setattr(attention, attribute, sizes[what])


def select_bias_(model: nn.Module, heads: Units, removed: Sequence[int]) -> None:
    """Let attention take the part of its remaining heads of a bias that all layers share."""
    structure = structure_of(model)
    entry = FAMILIES[structure.family]
    if entry.shared_bias is None:
        return
    name = f"{structure.blocks[heads.layer]}.{entry.attention}"
    attention = model.get_submodule(name)
    before = getattr(attention, "kept_heads", None)
    kept = list(range(heads.count)) if before is None else before["heads"]
    selected = {
        "argument": entry.shared_bias,
        "place": list(inspect.signature(attention.forward).parameters).index(entry.shared_bias),
        "heads": [head for place, head in enumerate(kept) if place not in set(removed)],
    }
    resize_(model, {name: {"kept_heads": selected}})
