"""The edit that replaces groups of encoder layers by compact blocks, at once or progressively.

In two steps, between which a model holds a switch for each group: :func:`insert_switches_`, then
:func:`finalize_substitution_`. :func:`substitute_layers_` does both. In between, successors replace
predecessors at random, with growing probability.

Source of progressive replacement: Xu et al., "BERT-of-Theseus: Compressing BERT by Progressive
Module Replacing", 2020, https://arxiv.org/abs/2002.02925, with its linear curriculum. The decision
is made for a batch and a group, not for an example.
"""

import random
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

from torch import nn
from torch.optim import Optimizer

from lightning_compress.errors import InputError
from lightning_compress.models.families import FAMILIES
from lightning_compress.models.layers import replace_layers_
from lightning_compress.models.manifest import (
    SUBSTITUTION_EDIT,
    manifest_of,
    require_float,
    set_manifest_,
)
from lightning_compress.models.masks import held_masks_, masks_of, renamed_masks, set_masks_
from lightning_compress.models.modeling_compressed import CompactBlock
from lightning_compress.models.removal import forget_
from lightning_compress.models.structure import structure_of
from lightning_compress.models.switch import ReplacementSwitch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def replacement_probability(step: int, *, final_step: int, initial: float) -> float:
    """Probability in [0, 1] that a successor runs at an optimizer step.

    Args:
        step: optimizer steps so far.
        final_step: the step from which the probability is 1.
        initial: the probability at step 0, from which it grows linearly.
    """
    return 1.0 if step >= final_step else initial + (1 - initial) * step / final_step


def sample_switches_(switches: Sequence[ReplacementSwitch], probability: float, key: str) -> None:
    """Draw for every switch whether its successor runs on the next training batch.

    Args:
        switches: of the model, first to last.
        probability: of the successor, in [0, 1].
        key: seeds the draw; equal keys give equal draws, on every process.
    """
    numbers = random.Random(key)
    for switch in switches:
        switch.sample(probability, numbers)


def substitute_layers_(
    model: nn.Module,
    groups: Sequence[Sequence[int]],
    *,
    width: int,
    depth: int = 1,
    heads: int | None = None,
    technique: str = SUBSTITUTION_EDIT,
) -> None:
    """Replace each group of layers by a compact block, in place.

    A compact block is a down-projection, ``depth`` layers of the model's own kind at a smaller
    width, an up-projection and a residual connection around all three. The up-projection is zero,
    so that the model starts as if the layers were skipped; the other weights are random.

    Args:
        model: a transformer of a family that is ``substitutable``.
        groups: of consecutive layers, counted from 0.
        width: hidden size of the narrow layers.
        depth: number of narrow layers in a compact block.
        heads: attention heads of a narrow layer; default: heads of the model's own size where
            ``width`` is a multiple of it and larger, else 2.
        technique: recorded in the manifest as what chose the groups.

    Raises:
        InputError: the family is unknown or not substitutable; a layer does not exist, is given
            twice, does not follow its predecessor in the group or is compact already; or the width
            is not a multiple of the heads or exceeds the model's. The model is then unchanged.

    Source: the bachelor thesis behind https://github.com/Malthehave/Bachelor-Thesis-2024, 2024.
    Its code applied the result for a batch's first example to all of them; this does not.
    """
    insert_switches_(model, groups, width=width, depth=depth, heads=heads, technique=technique)
    finalize_substitution_(model)


def insert_switches_(
    model: nn.Module,
    groups: Sequence[Sequence[int]],
    *,
    width: int,
    depth: int,
    heads: int | None,
    technique: str,
) -> None:
    """Replace each group of layers by a switch between it and a compact block, in place.

    Arguments and errors are those of :func:`substitute_layers_`.
    """
    heads = check_substitution(model, groups, width=width, heads=heads)
    if depth < 1:
        raise InputError(f"depth must be at least 1, not {depth}")
    structure = structure_of(model)
    entry = FAMILIES[structure.family]
    narrow = {"hidden_size": width, "num_attention_heads": heads, entry.inner: 4 * width}
    layers = [model.get_submodule(name) for name in structure.layers]
    group_starts = {group[0]: group for group in groups}
    grouped = {layer for group in groups for layer in group}
    inserted: list[nn.Module] = []
    for index, layer in enumerate(layers):
        if index in group_starts:
            compact = CompactBlock(
                type(layer), model.config, depth=depth, norm=entry.norm_first, narrow=narrow
            )
            _reset_parameters_(compact, model)
            predecessor = nn.ModuleList(layers[one] for one in group_starts[index])
            switch = ReplacementSwitch(predecessor, compact.train(model.training))
            inserted.append(switch.train(model.training))
        elif index not in grouped:
            inserted.append(layer)
    edit = {"edit": SUBSTITUTION_EDIT, "technique": technique, "depth": depth, **narrow}
    edit["groups"] = [list(group) for group in groups]
    names = _renaming(structure.layers, groups)
    kept = renamed_masks(held_masks_(model), names, structure.layers)
    replace_layers_(model, inserted)
    if kept:
        set_masks_(model, kept)
    set_manifest_(model, [*manifest_of(model), edit])


def _reset_parameters_(block: CompactBlock, model: nn.Module) -> None:
    """Random weights as in a new model of its family; the up-projection is zero."""
    block.apply(cast("PreTrainedModel", model)._init_weights)
    nn.init.zeros_(block.up.weight)
    nn.init.zeros_(block.up.bias)


def finalize_substitution_(model: nn.Module, optimizers: Iterable[Optimizer] = ()) -> None:
    """Replace every switch by its successor and drop the predecessors, in place.

    Args:
        model: with or without switches.
        optimizers: of the model; the parameters of the predecessors are removed from them.
    """
    if not switches_of(model):
        return
    structure = structure_of(model)
    names: dict[str, str] = {}
    layers: list[nn.Module] = []
    for name in structure.layers:
        layer = model.get_submodule(name)
        if isinstance(layer, ReplacementSwitch):
            for optimizer in optimizers:
                forget_(optimizer, layer.predecessor.parameters())
            names[f"{name}.successor"] = name
            layers.append(layer.successor)
        else:
            names[name] = name
            layers.append(layer)
    kept = renamed_masks(held_masks_(model), names, list(names))
    kept = {name: mask for name, mask in kept.items() if ".predecessor." not in name}
    replace_layers_(model, layers)
    if masks_of(model):
        set_masks_(model, kept)


def switches_of(model: nn.Module) -> list[ReplacementSwitch]:
    """The replacement switches of a model, first to last."""
    return [module for module in model.modules() if isinstance(module, ReplacementSwitch)]


def check_substitution(
    model: nn.Module, groups: Sequence[Sequence[int]], *, width: int, heads: int | None
) -> int:
    """Check that groups of layers can be substituted.

    Returns:
        The number of heads of a narrow layer.

    Raises:
        InputError: they cannot; see :func:`substitute_layers_`.
    """
    require_float(
        model, "substitute layers of the model that it came from, and quantize the result"
    )
    _check_groups(model, groups)
    return _heads_for(model, width, heads)


def _heads_for(model: nn.Module, width: int, heads: int | None) -> int:
    config: Any = model.config
    full = int(config.hidden_size)
    if not 1 <= width <= full:
        raise InputError(f"width is {width}: it lies between 1 and the model's, {full}")
    size = full // int(config.num_attention_heads)
    if heads is None:
        heads = width // size if width % size == 0 and width > size else 2
    if heads < 1 or width % heads:
        raise InputError(f"width is {width}, which is no multiple of {heads} heads")
    return heads


def _check_groups(model: nn.Module, groups: Sequence[Sequence[int]]) -> None:
    structure, what = structure_of(model), type(model).__name__
    if not FAMILIES[structure.family].substitutable:
        raise InputError(
            f"the layers of {what} cannot be made narrow; those of these families can: "
            + ", ".join(sorted(name for name, entry in FAMILIES.items() if entry.substitutable))
        )
    config: Any = model.config
    for field in ("scale_attn_by_inverse_layer_idx", "add_cross_attention"):
        if getattr(config, field, False):
            raise InputError(f"the layers of {what} cannot be substituted: its config has {field}")
    count = len(structure.layers)
    seen: set[int] = set()
    if not groups or not all(groups):
        raise InputError("there is no layer to substitute: name some in groups")
    for group in groups:
        for layer in group:
            if not 0 <= layer < count:
                raise InputError(
                    f"{what} has no layer {layer}: they are counted from 0 to {count - 1}"
                )
            if layer in seen:
                raise InputError(f"layer {layer} of {what} is given twice")
            if isinstance(
                model.get_submodule(structure.layers[layer]), CompactBlock | ReplacementSwitch
            ):
                raise InputError(f"layer {layer} of {what} is a compact block already")
            seen.add(layer)
        if any(second != first + 1 for first, second in pairwise(group)):
            raise InputError(
                f"the layers {list(group)} do not follow one another: give them as several groups"
            )


def _renaming(layers: Sequence[str], groups: Sequence[Sequence[int]]) -> dict[str, str]:
    """New name of each layer by its name before the switches are inserted."""
    places: dict[str, str] = {}
    first = {layer: (group[0], index) for group in groups for index, layer in enumerate(group)}
    position = -1
    for layer, name in enumerate(layers):
        start, index = first.get(layer, (layer, None))
        position += start == layer
        places[name] = layers[position] + ("" if index is None else f".predecessor.{index}")
    return places
