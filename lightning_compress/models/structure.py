"""The structure of a Hugging Face transformer: its layers, blocks, heads and neurons.

A model's family is its ``config.model_type``, an entry of ``FAMILIES``. Linear layers are
``nn.Linear``, which stores its weight as [outputs, inputs], or GPT-2's ``Conv1D``, which stores
[inputs, outputs]; the functions here treat both alike.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from lightning_compress.errors import InputError
from lightning_compress.models.families import FAMILIES, UnitKind
from lightning_compress.models.modeling_compressed import CompactBlock
from lightning_compress.models.modeling_quantized import QuantizedLinear
from lightning_compress.models.switch import ReplacementSwitch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Units:
    """The heads, or the feed-forward neurons, of one block, as they are now.

    Names of linear layers are relative to the model; the meaning of ``inputs``, ``output``,
    ``parts`` and ``relative`` is that of :class:`Projections`, of which ``relative`` has those that
    the model has.
    """

    kind: UnitKind
    layer: int
    inputs: tuple[str, ...]
    output: str
    parts: int
    count: int
    relative: tuple[str, ...] = ()


@dataclass(frozen=True)
class Structure:
    """The structure of one model; every name is relative to that model.

    ``layers`` are the names of what a text goes through one by one, first to last; ``blocks`` those
    of all transformer blocks of the family: the layers, but what is in a compact block instead of
    it; ``projections`` those of the linear layers around compact blocks, and of relative positions;
    ``predecessors`` those of the blocks that compact blocks beside them are to replace, and which
    are in no other list.
    """

    family: str
    layers: list[str]
    blocks: list[str]
    projections: list[str]
    predecessors: list[str]

    def linear_names(self, *, predecessors: bool = False) -> list[str]:
        """Names of the linear layers (``nn.Linear`` or ``Conv1D``) of the layers."""
        entry = FAMILIES[self.family]
        names = [
            *(*entry.heads.inputs, entry.heads.output),
            *(*entry.neurons.inputs, entry.neurons.output),
        ]
        blocks = [*self.blocks, *(self.predecessors if predecessors else [])]
        return [f"{block}.{name}" for block in blocks for name in names] + self.projections


def structure_of(model: nn.Module) -> Structure:
    """Find the layers and blocks of a Hugging Face transformer.

    Raises:
        InputError: the model is of no family in ``FAMILIES``.
    """
    family = getattr(getattr(model, "config", None), "model_type", None)
    if family not in FAMILIES:
        raise InputError(
            f"{type(model).__name__} (model type {family!r}) is of no known family; known are "
            f"{', '.join(sorted(FAMILIES))}. Name the weights yourself where there is an option "
            "for it, or add to FAMILIES in lightning_compress/models/families.py the entry that "
            "lightning_compress.models.propose_family(model) derives."
        )
    pattern = re.compile(
        r"(.+\.)?" + FAMILIES[family].blocks.replace(".", r"\.").replace("*", r"\d+")
    )
    layers: list[str] = []
    for name, _ in model.named_modules():
        # What a compact block holds may be called like a layer.
        if pattern.fullmatch(name) and not (layers and name.startswith(f"{layers[-1]}.")):
            layers.append(name)
    blocks = [block for name in layers for block in _blocks(model, name)]
    compact = [name for name, module in model.named_modules() if isinstance(module, CompactBlock)]
    projections = [f"{name}.{projection}" for name in compact for projection in ("down", "up")]
    projections += [name for block in blocks for name in _relative(model, block, family)]
    predecessors = [
        f"{name}.predecessor.{index}"
        for name, module in model.named_modules()
        if isinstance(module, ReplacementSwitch)
        for index in range(len(module.predecessor))
    ]
    return Structure(family, layers, blocks, projections, predecessors)


def _blocks(model: nn.Module, layer: str) -> list[str]:
    """Names of the family's own blocks in a layer: itself, or what it holds."""
    module = model.get_submodule(layer)
    if isinstance(module, CompactBlock):
        return [f"{layer}.layers.{index}" for index in range(len(module.layers))]
    if isinstance(module, ReplacementSwitch):
        return _blocks(model, f"{layer}.successor")
    return [layer]


def _relative(model: nn.Module, block: str, family: str) -> tuple[str, ...]:
    """Names of the projections of relative positions that a block has."""
    inside = dict(model.get_submodule(block).named_modules())
    return tuple(f"{block}.{name}" for name in FAMILIES[family].heads.relative if name in inside)


def units_of(model: nn.Module, kind: UnitKind) -> list[Units]:
    """The heads or the neurons of every block of a Hugging Face transformer, first to last.

    In a model with grouped-query attention a head is a key-value head with its query heads.

    Raises:
        InputError: the model is of no known family.
    """
    return units_in(model, structure_of(model).blocks, kind)


def units_in(model: nn.Module, blocks: Sequence[str], kind: UnitKind) -> list[Units]:
    """The heads or the neurons of the blocks of these names; see :func:`units_of`."""
    family = structure_of(model).family
    entry = FAMILIES[family]
    projections = entry.heads if kind == "heads" else entry.neurons
    found = []
    for layer, block in enumerate(blocks):
        values = cast(nn.Linear, model.get_submodule(f"{block}.{projections.inputs[-1]}"))
        rows = outputs_of(values)
        attention = model.get_submodule(f"{block}.{entry.attention}")
        size = int(getattr(attention, entry.head_size)) if kind == "heads" else 1
        found.append(
            Units(
                kind=kind,
                layer=layer,
                inputs=tuple(f"{block}.{name}" for name in projections.inputs),
                output=f"{block}.{projections.output}",
                parts=projections.parts,
                count=rows // projections.parts // size,
                relative=_relative(model, block, family) if kind == "heads" else (),
            )
        )
    return found


def transformer_in(module: nn.Module) -> "PreTrainedModel | None":
    """The Hugging Face model inside a module, which is the one to compress; None without one.

    Of several it is the one that ``module.compressed_model`` names, or the only one with a
    parameter to train: a teacher is frozen. Models inside a model are parts of it.

    Raises:
        InputError: several could be meant, or the name is not that of one.
    """
    found = dict(_outermost_models(module))
    named = getattr(module, "compressed_model", None)
    if named is not None:
        if named not in found:
            raise InputError(
                f"{type(module).__name__}.compressed_model is {named!r}, which is no Hugging Face "
                f"model in it: name one of {', '.join(found) or 'those that there are (none)'}"
            )
        return found[named]
    if len(found) < 2:
        return next(iter(found.values()), None)
    trained = [name for name, model in found.items() if _is_trained(model)]
    if len(trained) != 1:
        raise InputError(
            f"{type(module).__name__} holds {len(found)} Hugging Face models, "
            f"{', '.join(found)}, of which {len(trained)} are trained: set its attribute "
            "compressed_model to the name of the one to compress, or freeze the others with "
            "requires_grad_(False)"
        )
    return found[trained[0]]


def _outermost_models(module: nn.Module, name: str = "") -> "Iterator[tuple[str, PreTrainedModel]]":
    """Each Hugging Face model that is inside no other, with its name; a shared one once."""
    from transformers import PreTrainedModel

    if isinstance(module, PreTrainedModel):
        yield name, module
        return
    seen = set()
    for child_name, child in module.named_children():
        for path, model in _outermost_models(child, f"{name}.{child_name}".lstrip(".")):
            if model not in seen:
                seen.add(model)
                yield path, model


def _is_trained(model: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in model.parameters())


def linear_at(model: nn.Module, name: str) -> nn.Linear:
    """The linear layer of that name; it may be a ``Conv1D``, with its weight transposed.

    Raises:
        InputError: its weight is no parameter.
    """
    module = cast(nn.Linear, model.get_submodule(name))
    if has_computed_weight(module):
        raise InputError(f"{name}: {COMPUTED_WEIGHT}")
    return module


COMPUTED_WEIGHT = (
    "its weight is computed from other tensors in every step; make it permanent first, with "
    "torch.nn.utils.parametrize.remove_parametrizations, torch.nn.utils.prune.remove or "
    "merge_and_unload of PEFT"
)


def has_computed_weight(module: nn.Module) -> bool:
    """Whether a module has a weight that is no parameter: by a parametrization or torch's masks."""
    return module._parameters.get("weight") is None


def output_dim(module: nn.Module) -> int:
    """The dimension of a weight along which the outputs lie; the inputs lie along one minus it."""
    return 0 if isinstance(module, nn.Linear | QuantizedLinear) else 1


def outputs_of(module: nn.Linear) -> int:
    """Number of outputs of a linear layer."""
    return module.weight.shape[output_dim(module)]


def inputs_of(module: nn.Linear) -> int:
    """Number of inputs of a linear layer."""
    if isinstance(module, QuantizedLinear):  # two weights may be in a byte
        return module.in_features
    return module.weight.shape[1 - output_dim(module)]


def outgoing(model: nn.Module, units: Units) -> Tensor:
    """Weights from units to the residual stream: [O, U, W], W inputs of the output per unit."""
    weight = outputs_first(linear_at(model, units.output))
    return weight.reshape(len(weight), units.count, -1)


def incoming(model: nn.Module, units: Units) -> list[Tensor]:
    """Weights into units, one tensor [U, R] per projection before them, R weights per unit."""
    found = []
    for name in (*units.inputs, *units.relative):
        module = linear_at(model, name)
        order = positions_of(range(units.count), outputs_of(module), units.parts, units.count)
        # Parts come one after another: [parts, U, W] to [U, parts * W]
        order = order.reshape(units.parts, units.count, -1).transpose(0, 1).flatten()
        found.append(outputs_first(module)[order].reshape(units.count, -1))
    return found


def outputs_first(module: nn.Linear) -> Tensor:
    """The weight of a linear layer as [outputs, inputs], a view."""
    weight = module.weight.detach()
    return weight if output_dim(module) == 0 else weight.T


def macs_per_token(model: nn.Module, units: Units) -> int:
    """Multiply-accumulates by the weights of one unit, per token, without relative positions."""
    module = linear_at(model, units.output)
    inward = sum(
        outputs_of(linear_at(model, name)) * inputs_of(linear_at(model, name))
        for name in units.inputs
    )
    return (inward + inputs_of(module) * outputs_of(module)) // units.count


def macs_per_pair(model: nn.Module, units: Units) -> int:
    """Multiply-accumulates of one unit per pair of tokens: attention scores and weighted sum."""
    if units.kind == "neurons":
        return 0
    return 2 * inputs_of(linear_at(model, units.output)) // units.count


def positions_of(units: Sequence[int] | Tensor, size: int, parts: int, count: int) -> Tensor:
    """Positions of some units along a dimension of ``size`` that holds ``count`` in order.

    The dimension may hold several ``parts`` one after another, each of which all units share.
    """
    width = size // parts // count
    chosen = torch.as_tensor(units, dtype=torch.int64)
    within = (chosen[:, None] * width + torch.arange(width)).flatten()
    return (torch.arange(parts)[:, None] * (size // parts) + within).flatten()
