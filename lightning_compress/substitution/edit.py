"""The edit that puts compact blocks in the place of layers."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

from torch import nn
from torch.optim import Optimizer

from lightning_compress.errors import InputError
from lightning_compress.models.families import FAMILIES
from lightning_compress.models.layers import replace_layers_
from lightning_compress.models.manifest import manifest_of, require_float, set_manifest_
from lightning_compress.models.masks import masks_of, renamed_masks, set_masks_
from lightning_compress.models.modeling_compressed import CompactBlock
from lightning_compress.models.removal import SUBSTITUTION_EDIT, forget_
from lightning_compress.models.structure import structure_of
from lightning_compress.models.switch import Choice

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def substitute_layers_(
    model: nn.Module,
    groups: Sequence[Sequence[int]],
    *,
    width: int,
    depth: int = 1,
    heads: int | None = None,
    technique: str = SUBSTITUTION_EDIT,
) -> None:
    """Put a compact block in the place of each group of layers, in place.

    A compact block is a down-projection, ``depth`` layers of the model's own kind at a smaller
    width, and an up-projection, beside which its input passes on. Its up-projection is zero, so
    that at first the model is what it would be without the layers; the rest is random.

    Source: the bachelor thesis behind https://github.com/Malthehave/Bachelor-Thesis-2024, 2024,
    whose code gave every text of a batch what the first one should have had.

    Args:
        model: a transformer of a family that is ``substitutable``.
        groups: layers, counted from 0, that follow one another; any number of such groups.
        width: of the narrow layers.
        depth: how many narrow layers a compact block has.
        heads: of each of them; default: as many of the model's own size as fit, or two smaller.
        technique: what chose them; the report names it.

    Raises:
        InputError: the family is unknown or its layers cannot be narrow, a layer is not there,
            given twice, not next to its group or compact already, or the width is no multiple of
            the heads or more than the model's. The model is then unchanged.
    """
    stage_substitution_(model, groups, width=width, depth=depth, heads=heads, technique=technique)
    settle_substitution_(model)


def stage_substitution_(
    model: nn.Module,
    groups: Sequence[Sequence[int]],
    *,
    width: int,
    depth: int,
    heads: int | None,
    technique: str,
) -> None:
    """Put compact blocks beside the layers that they will replace; arguments as above."""
    heads = check_substitution(model, groups, width=width, heads=heads)
    if depth < 1:
        raise InputError(f"depth must be at least 1, not {depth}")
    structure = structure_of(model)
    entry = FAMILIES[structure.family]
    narrow = {
        "hidden_size": width,
        "num_attention_heads": heads,
        entry.inner: 4 * width,
    }
    layers = [model.get_submodule(name) for name in structure.layers]
    masks = _renaming(structure.layers, groups)
    staged: list[nn.Module] = []
    starts = {group[0]: group for group in groups}
    inside = {layer for group in groups for layer in group}
    for index, layer in enumerate(layers):
        if index in starts:
            compact = CompactBlock(
                type(layer), model.config, depth=depth, norm=entry.norm_first, narrow=narrow
            )
            compact.apply(cast("PreTrainedModel", model)._init_weights)
            nn.init.zeros_(compact.up.weight)
            nn.init.zeros_(compact.up.bias)
            old = nn.ModuleList(layers[one] for one in starts[index])
            staged.append(Choice(old, compact.train(model.training)).train(model.training))
        elif index not in inside:
            staged.append(layer)
    edit = {
        "edit": SUBSTITUTION_EDIT,
        "technique": technique,
        "groups": [list(group) for group in groups],
        "depth": depth,
        **narrow,
    }
    kept = renamed_masks(masks_of(model), masks, structure.layers)
    replace_layers_(model, staged)
    if kept:
        set_masks_(model, kept)
    set_manifest_(model, [*manifest_of(model), edit])


def settle_substitution_(model: nn.Module, optimizers: Iterable[Optimizer] = ()) -> None:
    """Let the compact blocks take the place of the layers that they stand beside.

    Args:
        model: of which some layers are compact blocks beside old layers.
        optimizers: that train the model; they forget the old layers.
    """
    structure = structure_of(model)
    layers = [model.get_submodule(name) for name in structure.layers]
    if not choices_of(model):
        return
    for layer in layers:
        if isinstance(layer, Choice):
            for optimizer in optimizers:
                forget_(optimizer, layer.old.parameters())
    names = {
        f"{name}.new" if isinstance(layer, Choice) else name: name
        for name, layer in zip(structure.layers, layers, strict=True)
    }
    kept = renamed_masks(masks_of(model), names, list(names))
    kept = {name: mask for name, mask in kept.items() if ".old." not in name}
    replace_layers_(model, [layer.new if isinstance(layer, Choice) else layer for layer in layers])
    if masks_of(model):
        set_masks_(model, kept)


def choices_of(model: nn.Module) -> list[Choice]:
    """The compact blocks that stand beside old layers, first to last."""
    return [module for module in model.modules() if isinstance(module, Choice)]


def check_substitution(
    model: nn.Module, groups: Sequence[Sequence[int]], *, width: int, heads: int | None
) -> int:
    """See that layers can be substituted; gives the number of heads of a narrow one.

    Raises:
        InputError: they cannot, as of :func:`substitute_layers_`.
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
            if isinstance(model.get_submodule(structure.layers[layer]), CompactBlock | Choice):
                raise InputError(f"layer {layer} of {what} is a compact block already")
            seen.add(layer)
        if any(second != first + 1 for first, second in pairwise(group)):
            raise InputError(
                f"the layers {list(group)} do not follow one another: give them as several groups"
            )


def _renaming(layers: Sequence[str], groups: Sequence[Sequence[int]]) -> dict[str, str]:
    """Names of the layers once groups of them have become one."""
    places: dict[str, str] = {}
    first = {layer: (group[0], index) for group in groups for index, layer in enumerate(group)}
    position = -1
    for layer, name in enumerate(layers):
        start, index = first.get(layer, (layer, None))
        position += start == layer
        places[name] = layers[position] + ("" if index is None else f".old.{index}")
    return places
