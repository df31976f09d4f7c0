"""The stack of layers of a transformer: its composition, skipped layers, removed layers.

A layer is a block of the family, a compact block, or a switch between both.
"""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

from torch import nn
from torch.optim import Optimizer

from lightning_compress.errors import InputError
from lightning_compress.models.families import FAMILIES
from lightning_compress.models.hooks import Call, after_calls
from lightning_compress.models.manifest import LAYERS_EDIT, StatePart, require_float
from lightning_compress.models.masks import held_masks_, masks_of, renamed_masks, set_masks_
from lightning_compress.models.modeling_compressed import (
    CompactBlock,
    new_layer,
    number_,
)
from lightning_compress.models.removal import (
    _PRUNE_FIRST,
    _in_order,
    _record_,
    _require_rest,
    forget_,
)
from lightning_compress.models.structure import structure_of
from lightning_compress.models.switch import ReplacementSwitch

Shape = dict[str, Any]


def layer_count(model: nn.Module) -> int | None:
    """Number of layers; None where they share one block, or the family is unknown."""
    if not _stacked(model):
        return None
    return len(structure_of(model).layers)


def compact_shapes(model: nn.Module) -> dict[str, Shape]:
    """The shapes of the compact blocks, as plain data, by name of the layer.

    One beside the layers that it is to replace has their number in ``replaces``.
    """
    if not _stacked(model):
        return {}
    shapes = {name: _shape_of(model.get_submodule(name)) for name in structure_of(model).layers}
    return {name: shape for name, shape in shapes.items() if shape is not None}


def _capture(model: nn.Module) -> dict[str, Any]:
    return {
        "count": layer_count(model),
        "compact": compact_shapes(model),
        "first": _starts_with_first(model),
        "types": copy.copy(getattr(getattr(model, "config", None), "layer_types", None)),
    }


def _starts_with_first(model: nn.Module) -> dict[str, bool]:
    """Whether the first layer is that of the dense model, by its name, where that one differs."""
    structure = structure_of(model) if _stacked(model) else None
    if structure is None or not FAMILIES[structure.family].not_in_first:
        return {}
    name = structure.layers[0]
    return {name: _is_first(model.get_submodule(name), structure.family)}


def _is_first(layer: nn.Module, family: str) -> bool:
    names = FAMILIES[family].not_in_first
    return any(isinstance(layer.get_submodule(name), nn.Identity) for name in names)


def _restore_(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Set the number of layers and the compact blocks of a model; new weights are unset."""
    if state["count"] is None:
        return
    structure, config = structure_of(model), cast(Any, model.config)
    container = structure.layers[0].rpartition(".")[0]
    present = [model.get_submodule(name) for name in structure.layers]
    shapes = [state["compact"].get(f"{container}.{index}") for index in range(state["count"])]
    first = state.get("first", {})  # older states have neither this nor types
    firsts = [first.get(f"{container}.{index}", False) for index in range(state["count"])]
    before, types = list(getattr(config, "layer_types", ()) or ()), state.get("types")
    if types is not None:
        config.layer_types = list(types)
    host = type(model.get_submodule(structure.blocks[0]))
    layers = []
    for index, (shape, in_front) in enumerate(zip(shapes, firsts, strict=True)):
        fits = (
            index < len(present)
            and _shape_of(present[index]) == shape
            and _is_first(present[index], structure.family) == in_front
            and (types is None or before[index] == types[index])
        )
        layers.append(
            present[index] if fits else _layer_of(shape, host, model, index, first=in_front)
        )
    if layers != present:
        replace_layers_(model, layers)


LAYERS = StatePart("layers", _capture, _restore_, shape=True)


def replace_layers_(model: nn.Module, layers: list[nn.Module]) -> None:
    """Replace the stack of layers, number the layers and update the configuration."""
    container = structure_of(model).layers[0].rpartition(".")[0]
    weight = next(model.parameters())
    stack = nn.ModuleList(layers).to(weight.device, weight.dtype)
    model.set_submodule(container, stack)
    number_(stack)
    config: Any = model.config
    structure = structure_of(model)
    config.num_hidden_layers = len(structure.blocks) + len(structure.predecessors)


def _layer_of(
    shape: Shape | None, host: type, model: nn.Module, index: int, *, first: bool
) -> nn.Module:
    config: Any = model.config
    if shape is None:
        layer: nn.Module = new_layer(host, config, index, first=first)
        return layer.train(model.training)
    rest = {name: value for name, value in shape.items() if name != "replaces"}
    compact = CompactBlock(host, config, **rest)
    if "replaces" not in shape:
        return compact.train(model.training)
    old = nn.ModuleList(new_layer(host, config) for _ in range(shape["replaces"]))
    return ReplacementSwitch(old, compact).train(model.training)


def _shape_of(layer: nn.Module) -> Shape | None:
    if isinstance(layer, CompactBlock):
        return dict(layer.shape)
    if isinstance(layer, ReplacementSwitch):
        return {**layer.successor.shape, "replaces": len(layer.predecessor)}
    return None


def _stacked(model: nn.Module) -> bool:
    family = FAMILIES.get(getattr(getattr(model, "config", None), "model_type", ""))
    return family is not None and not family.shared


@contextmanager
def skipped(model: nn.Module, layers: Sequence[int]) -> Iterator[None]:
    """Replace these layers by the identity while the context lasts.

    Args:
        model: a transformer of a known family.
        layers: counted from 0.
    """
    blocks = structure_of(model).layers
    with after_calls((model.get_submodule(blocks[layer]), _pass_on) for layer in layers):
        yield


def _pass_on(call: Call) -> Any:
    return (call.hidden, *call.output[1:]) if isinstance(call.output, tuple) else call.hidden


def remove_layers_(
    model: nn.Module,
    layers: Sequence[int],
    *,
    optimizers: Iterable[Optimizer] = (),
    technique: str = LAYERS_EDIT,
) -> None:
    """Remove whole layers (blocks) of a Hugging Face transformer, in place.

    Args:
        model: a transformer of a known family.
        layers: indices of the layers to remove, from 0, in the model as it is now.
        optimizers: that train the model; removed parameters and their state are dropped.
        technique: name of the method that selected the layers, for the report.

    Raises:
        InputError: the family is unknown or shares one block among its layers, a layer does
            not exist or is given twice, or none would be left. The model is then unchanged.
    """
    require_float(model, _PRUNE_FIRST)
    require_removable(model)
    structure, what = structure_of(model), type(model).__name__
    removed = _in_order(layers, len(structure.layers), what, "layer")
    _require_rest(removed, len(structure.layers), what, "layers")
    if not removed:
        return
    for optimizer in optimizers:
        for layer in removed:
            forget_(optimizer, model.get_submodule(structure.layers[layer]).parameters())
    kept = [layer for layer in range(len(structure.layers)) if layer not in removed]
    names = {structure.layers[old]: structure.layers[new] for new, old in enumerate(kept)}
    masks = renamed_masks(held_masks_(model), names, structure.layers)
    config: Any = model.config
    types = getattr(config, "layer_types", None)
    replace_layers_(model, [model.get_submodule(structure.layers[layer]) for layer in kept])
    if types is not None:
        config.layer_types = [types[layer] for layer in kept]
    if masks_of(model):
        set_masks_(model, masks)
    inside = tuple(f"{structure.layers[layer]}." for layer in removed)
    blocks = [
        index for index, block in enumerate(structure.blocks) if f"{block}.".startswith(inside)
    ]
    edit = {"edit": LAYERS_EDIT, "technique": technique, "layers": removed}
    _record_(model, edit if blocks == removed else {**edit, "blocks": blocks})


def require_removable(model: nn.Module) -> None:
    """Require that each layer has weights of its own and does not depend on its position.

    Raises:
        InputError: no layer can be removed.
    """
    what, family = type(model).__name__, FAMILIES[structure_of(model).family]
    if family.shared:
        raise InputError(
            f"no layer can be removed from {what}: its layers are one block, used again and again; "
            "set config.num_hidden_layers to use it fewer times"
        )
    for field in family.fixed_by:
        if getattr(model.config, field, False):
            raise InputError(
                f"no layer can be removed from {what}: config.{field} makes layers depend on their "
                "positions"
            )
