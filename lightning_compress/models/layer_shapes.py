"""What the layers of a model are: the family's own, compact blocks, or both side by side."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from lightning_compress.models.choice import Choice
from lightning_compress.models.modeling_compressed import (
    CompactBlock,
    new_layer,
    number_,
    put_,
)
from lightning_compress.models.structure import FAMILIES, structure_of

Shape = dict[str, Any]


def layer_count(model: nn.Module) -> int | None:
    """How many layers the model has; None where they share one block, or the family is unknown."""
    if not _stacked(model):
        return None
    return len(structure_of(model).layers)


def compact_shapes(model: nn.Module) -> dict[str, Shape]:
    """The shapes of the compact blocks, as plain data, by the number of the layer.

    One that stands beside the layers it is to replace has their number in ``replaces``.
    """
    if not _stacked(model):
        return {}
    shapes = {
        str(index): _shape_of(model.get_submodule(name))
        for index, name in enumerate(structure_of(model).layers)
    }
    return {index: shape for index, shape in shapes.items() if shape is not None}


def set_layers_(model: nn.Module, count: int, compact: Mapping[str, Shape]) -> None:
    """Give the model that many layers, of these shapes.

    For a model that is about to get other weights: those of new layers are unset.

    Args:
        model: a transformer of a known family, whose layers are blocks of their own.
        count: how many layers.
        compact: as of :func:`compact_shapes`.
    """
    there = [model.get_submodule(name) for name in structure_of(model).layers]
    wanted = [compact.get(str(index)) for index in range(count)]
    if [_shape_of(layer) for layer in there] == wanted:
        return
    host = type(model.get_submodule(structure_of(model).blocks[0]))
    layers = [
        there[index] if index < len(there) and _shape_of(there[index]) == shape
        else _layer_of(shape, host, model)
        for index, shape in enumerate(wanted)
    ]  # fmt: skip
    replace_layers_(model, layers)


def replace_layers_(model: nn.Module, layers: list[nn.Module]) -> None:
    """Let the model consist of these layers, and tell them their places."""
    container = structure_of(model).layers[0].rpartition(".")[0]
    weight = next(model.parameters())
    stack = nn.ModuleList(layers).to(weight.device, weight.dtype)
    put_(model, container, stack)
    number_(stack)
    config: Any = model.config
    structure = structure_of(model)
    config.num_hidden_layers = len(structure.blocks) + len(structure.leaving)


def _layer_of(shape: Shape | None, host: type, model: nn.Module) -> nn.Module:
    config: Any = model.config
    if shape is None:
        layer: nn.Module = new_layer(host, config)
        return layer.train(model.training)
    rest = {name: value for name, value in shape.items() if name != "replaces"}
    compact = CompactBlock(host, config, **rest)
    if "replaces" not in shape:
        return compact.train(model.training)
    old = nn.ModuleList(new_layer(host, config) for _ in range(shape["replaces"]))
    return Choice(old, compact).train(model.training)


def _shape_of(layer: nn.Module) -> Shape | None:
    if isinstance(layer, CompactBlock):
        return dict(layer.shape)
    if isinstance(layer, Choice):
        return {**layer.new.shape, "replaces": len(layer.old)}
    return None


def _stacked(model: nn.Module) -> bool:
    family = FAMILIES.get(getattr(getattr(model, "config", None), "model_type", ""))
    return family is not None and not family.shared
