"""Structured removal of attention heads and feed-forward neurons.

Parameters are sliced together with what has their shape: masks and the state of optimizers. All
arguments are checked before the first change, so an error leaves the model unchanged.

Which units survive is read off the manifest.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_compress.errors import InputError
from lightning_compress.models.families import UnitKind
from lightning_compress.models.manifest import (
    HEADS_EDIT,
    LAYERS_EDIT,
    NEURONS_EDIT,
    SUBSTITUTION_EDIT,
    Edit,
    manifest_of,
    require_float,
    set_manifest_,
)
from lightning_compress.models.masks import held_masks_, set_masks_
from lightning_compress.models.sizes import select_bias_, update_sizes_
from lightning_compress.models.structure import (
    Units,
    inputs_of,
    linear_at,
    output_dim,
    outputs_of,
    positions_of,
    units_of,
)


@dataclass(frozen=True)
class Cut:
    """Keep the entries ``kept`` (positions, ascending) of a parameter along ``dim``."""

    parameter: str
    dim: int
    kept: Tensor


@torch.no_grad()
def cut_(model: nn.Module, cuts: Sequence[Cut], optimizers: Iterable[Optimizer] = ()) -> None:
    """Slice parameters in place; each becomes a new, smaller ``nn.Parameter``.

    Args:
        model: any module.
        cuts: by parameter name, relative to ``model``; the same parameter may be cut along both
            dimensions.
        optimizers: that train the model; their state is sliced too, or dropped where it has no
            dimension of the parameter.
    """
    masks = held_masks_(model)
    for cut in cuts:
        owner, _, leaf = cut.parameter.rpartition(".")
        module = model.get_submodule(owner)
        old: nn.Parameter = getattr(module, leaf)
        new = nn.Parameter(_kept(old.detach(), cut), requires_grad=old.requires_grad)
        setattr(module, leaf, new)
        for optimizer in optimizers:
            _replace_(optimizer, old, new, cut)
        if cut.parameter in masks:
            masks[cut.parameter] = _kept(masks[cut.parameter], cut)
    if masks:
        set_masks_(model, masks)


def forget_(optimizer: Optimizer, parameters: Iterable[nn.Parameter]) -> None:
    """Drop parameters and their moments from an optimizer."""
    to_remove = {id(parameter) for parameter in parameters}
    for group in optimizer.param_groups:
        group["params"] = [weight for weight in group["params"] if id(weight) not in to_remove]
    for parameter in [weight for weight in optimizer.state if id(weight) in to_remove]:
        del optimizer.state[parameter]


def _kept(tensor: Tensor, cut: Cut) -> Tensor:
    return tensor.index_select(cut.dim, cut.kept.to(tensor.device))


def _replace_(optimizer: Optimizer, old: nn.Parameter, new: nn.Parameter, cut: Cut) -> None:
    for group in optimizer.param_groups:
        group["params"] = [new if weight is old else weight for weight in group["params"]]
    if old in optimizer.state:
        state = optimizer.state.pop(old)
        if all(_is_cuttable(value, old) for value in state.values()):
            optimizer.state[new] = {
                name: _kept(value, cut) if _has_dim(value, old, cut.dim) else value
                for name, value in state.items()
            }


def _has_dim(value: object, parameter: Tensor, dim: int) -> bool:
    """Whether a value of the optimizer's state has the dimension of its parameter."""
    if not isinstance(value, Tensor) or value.dim() != parameter.dim():
        return False
    return value.shape[dim] == parameter.shape[dim]


def _is_cuttable(value: object, parameter: Tensor) -> bool:
    """Whether a value is a number, or a tensor like the parameter or its mean along dimensions.

    Others, such as a vector of a matrix's rows, cannot be assigned to its dimensions:
    the optimizer starts anew with this one.
    """
    if not isinstance(value, Tensor) or value.numel() == 1:
        return True
    pairs = zip(value.shape, parameter.shape, strict=False)
    return value.dim() == parameter.dim() and all(have in (1, of) for have, of in pairs)


_PRUNE_FIRST = "prune the model that it came from, and quantize the result"


def remove_heads_(
    model: nn.Module,
    heads: Mapping[int, Sequence[int]],
    *,
    optimizers: Iterable[Optimizer] = (),
    technique: str = HEADS_EDIT,
) -> None:
    """Remove attention heads from a Hugging Face transformer, in place.

    With grouped-query attention a head is a key-value head with all its query heads. In ALBERT,
    whose layers share one block, a head is removed from all layers.

    Args:
        model: a transformer of a known family.
        heads: indices of the heads to remove by layer, both from 0, in the model as it is now.
        optimizers: that train the model; their state is sliced too.
        technique: name of the method that selected the heads, for the report.

    Raises:
        InputError: the family is unknown, a layer or a head does not exist or is given twice,
            or a layer would be left without heads. The model is then unchanged.
    """
    _remove_units_(model, "heads", heads, optimizers, HEADS_EDIT, technique)


def remove_neurons_(
    model: nn.Module,
    neurons: Mapping[int, Sequence[int]],
    *,
    optimizers: Iterable[Optimizer] = (),
    technique: str = NEURONS_EDIT,
) -> None:
    """Remove neurons of the feed-forward layers of a Hugging Face transformer, in place.

    Args:
        model: a transformer of a known family.
        neurons: indices of the neurons to remove by layer, both from 0, in the model as it is now.
        optimizers: that train the model; their state is sliced too.
        technique: name of the method that selected the neurons, for the report.

    Raises:
        InputError: the family is unknown, a layer or a neuron does not exist or is given twice,
            or a layer would be left without neurons. The model is then unchanged.
    """
    _remove_units_(model, "neurons", neurons, optimizers, NEURONS_EDIT, technique)


def _remove_units_(
    model: nn.Module,
    kind: UnitKind,
    removed: Mapping[int, Sequence[int]],
    optimizers: Iterable[Optimizer],
    edit: str,
    technique: str,
) -> None:
    require_float(model, _PRUNE_FIRST)
    units, what = units_of(model, kind), type(model).__name__
    to_remove = {}
    for layer in _in_order(list(removed), len(units), what, "layer"):
        where, count = f"layer {layer} of {what}", units[layer].count
        to_remove[layer] = _in_order(removed[layer], count, where, kind[:-1])
        _require_rest(to_remove[layer], count, where, kind)
    to_remove = {layer: positions for layer, positions in to_remove.items() if positions}
    if not to_remove:
        return
    cuts = [cut for layer in to_remove for cut in _cuts(model, units[layer], to_remove[layer])]
    cut_(model, cuts, optimizers)
    for layer, positions in to_remove.items():
        update_sizes_(model, units[layer])
        if kind == "heads":
            select_bias_(model, units[layer], positions)
    _record_(
        model,
        {"edit": edit, "technique": technique, "layers": {str(k): v for k, v in to_remove.items()}},
    )


def _cuts(model: nn.Module, units: Units, to_remove: Sequence[int]) -> list[Cut]:
    kept = [unit for unit in range(units.count) if unit not in set(to_remove)]
    cuts = []
    for name in (*units.inputs, *units.relative):
        module = linear_at(model, name)
        rows = positions_of(kept, outputs_of(module), units.parts, units.count)
        cuts.append(Cut(f"{name}.weight", output_dim(module), rows))
        if module.bias is not None:
            cuts.append(Cut(f"{name}.bias", 0, rows))
    module = linear_at(model, units.output)
    columns = positions_of(kept, inputs_of(module), 1, units.count)
    cuts.append(Cut(f"{units.output}.weight", 1 - output_dim(module), columns))
    return cuts


def _in_order(indices: Sequence[int], count: int, where: str, what: str) -> list[int]:
    """The indices, ascending; raises if one is out of range or given twice."""
    wrong = [index for index in indices if not 0 <= index < count]
    if wrong:
        raise InputError(
            f"{where} has no {what} {wrong[0]}: they are counted from 0 to {count - 1}"
        )
    ordered = sorted(set(indices))
    if len(ordered) < len(indices):
        twice = next(index for index in ordered if list(indices).count(index) > 1)
        raise InputError(f"{what} {twice} of {where} is given twice")
    return ordered


def _require_rest(to_remove: Sequence[int], count: int, where: str, what: str) -> None:
    if len(to_remove) == count:
        raise InputError(f"{where} would lose all its {count} {what}: keep at least one")


def _record_(model: nn.Module, edit: Edit) -> None:
    set_manifest_(model, [*manifest_of(model), edit])


_EDITS: dict[UnitKind, str] = {"heads": HEADS_EDIT, "neurons": NEURONS_EDIT}


def surviving_units(model: nn.Module, kind: UnitKind) -> list[list[int] | None]:
    """For every layer of the dense model, the indices of its surviving units.

    None for a layer that was removed. In a model with compact blocks, the dense model is the
    one right after the last substitution, narrow blocks included.

    Raises:
        InputError: the model is of no known family.
    """
    left: list[list[int] | None] = [list(range(one.count)) for one in units_of(model, kind)]
    for edit in reversed(manifest_of(model)):
        if edit["edit"] == SUBSTITUTION_EDIT:
            break
        if edit["edit"] == LAYERS_EDIT:
            # Ascending, so each finds its old place.
            for block in edit["blocks"] if "blocks" in edit else edit["layers"]:
                left.insert(block, None)
        elif edit["edit"] == _EDITS[kind]:
            for layer, removed in edit["layers"].items():
                now = left[int(layer)]
                left[int(layer)] = None if now is None else _before(now, removed)
    return left


def _before(positions: list[int], removed: list[int]) -> list[int]:
    """Indices of the same units before those at the ascending indices ``removed`` were removed."""
    for place in removed:
        positions = [position + (position >= place) for position in positions]
    return positions
