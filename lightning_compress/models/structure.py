"""Where the blocks of a Hugging Face transformer are, and what can be taken out of them.

A family is one entry of ``FAMILIES``: names of modules and attributes, nothing else.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from torch import nn

from lightning_compress.errors import InputError
from lightning_compress.models.choice import Choice
from lightning_compress.models.linear import linear_at, outputs_of
from lightning_compress.models.modeling_compressed import CompactBlock

if TYPE_CHECKING:
    from transformers import PreTrainedModel

UnitKind = Literal["heads", "neurons"]


@dataclass(frozen=True)
class Projections:
    """Linear layers of a block between which its heads, or its neurons, lie.

    The outputs of each of ``inputs`` and the inputs of ``output`` belong to the units in order,
    the same number to each. Outputs come in ``parts`` that are laid out so one after another: a
    fused query, key and value has three. The last of ``inputs`` computes the values.
    """

    inputs: tuple[str, ...]
    output: str
    parts: int = 1


@dataclass(frozen=True)
class Family:
    """Names in one architecture: ``blocks`` inside its base model, the others inside a block.

    A ``*`` in ``blocks`` stands for one index. ``attention`` is the module that has the attribute
    ``head_size`` and keeps ``counts``, by attribute: the number of query ``heads``, or their
    ``width`` together. ``shared``: the layers of the model are one block, used again and again.
    ``inner``: the configuration's field for the number of neurons. ``norm_first``: a block's norms
    stand in front of attention and feed-forward layers, not behind their sums. ``causal``: a token
    sees only those before it.
    """

    blocks: str
    heads: Projections
    neurons: Projections
    attention: str
    head_size: str
    counts: Mapping[str, Literal["heads", "width"]] = field(default_factory=dict)
    shared: bool = False
    inner: str = "intermediate_size"
    norm_first: bool = False
    causal: bool = False


_BERT = Family(
    blocks="encoder.layer.*",
    heads=Projections(
        inputs=("attention.self.query", "attention.self.key", "attention.self.value"),
        output="attention.output.dense",
    ),
    neurons=Projections(inputs=("intermediate.dense",), output="output.dense"),
    attention="attention.self",
    head_size="attention_head_size",
    counts={"num_attention_heads": "heads", "all_head_size": "width"},
)

FAMILIES = {
    "bert": _BERT,
    "roberta": _BERT,
    "electra": _BERT,
    "distilbert": Family(
        blocks="transformer.layer.*",
        heads=Projections(
            inputs=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
            output="attention.out_lin",
        ),
        neurons=Projections(inputs=("ffn.lin1",), output="ffn.lin2"),
        attention="attention",
        head_size="attention_head_size",
        counts={"n_heads": "heads"},
        inner="hidden_dim",
    ),
    "albert": Family(
        blocks="encoder.albert_layer_groups.*.albert_layers.*",
        heads=Projections(
            inputs=("attention.query", "attention.key", "attention.value"),
            output="attention.dense",
        ),
        neurons=Projections(inputs=("ffn",), output="ffn_output"),
        attention="attention",
        head_size="attention_head_size",
        counts={"num_attention_heads": "heads", "all_head_size": "width"},
        shared=True,
    ),
    "gpt2": Family(
        blocks="h.*",
        heads=Projections(inputs=("attn.c_attn",), output="attn.c_proj", parts=3),
        neurons=Projections(inputs=("mlp.c_fc",), output="mlp.c_proj"),
        attention="attn",
        head_size="head_dim",
        counts={"num_heads": "heads", "split_size": "width"},
        inner="n_inner",
        norm_first=True,
        causal=True,
    ),
    # A head is a key-value head here, with all the query heads that share it.
    "llama": Family(
        blocks="layers.*",
        heads=Projections(
            inputs=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            output="self_attn.o_proj",
        ),
        neurons=Projections(inputs=("mlp.gate_proj", "mlp.up_proj"), output="mlp.down_proj"),
        attention="self_attn",
        head_size="head_dim",
        norm_first=True,
        causal=True,
    ),
}


@dataclass(frozen=True)
class Units:
    """The heads, or the feed-forward neurons, of one block, as they are now.

    Names of linear layers are relative to the model; the meaning of ``inputs``, ``output`` and
    ``parts`` is that of :class:`Projections`.
    """

    kind: UnitKind
    layer: int
    inputs: tuple[str, ...]
    output: str
    parts: int
    count: int


@dataclass(frozen=True)
class Structure:
    """The structure of one model; every name is relative to that model.

    ``layers`` are the names of what a text goes through one by one, first to last; ``blocks`` those
    of all transformer blocks of the family: the layers, but what is in a compact block instead of
    it; ``projections`` those of the linear layers around compact blocks; ``leaving`` those of the
    blocks that compact blocks beside them are to replace, and which are in no other list.
    """

    family: str
    layers: list[str]
    blocks: list[str]
    projections: list[str]
    leaving: list[str]

    def linear_names(self, *, leaving: bool = False) -> list[str]:
        """Names of the linear layers (``nn.Linear`` or ``Conv1D``) of the layers."""
        entry = FAMILIES[self.family]
        names = [
            *(*entry.heads.inputs, entry.heads.output),
            *(*entry.neurons.inputs, entry.neurons.output),
        ]
        blocks = [*self.blocks, *(self.leaving if leaving else [])]
        return [f"{block}.{name}" for block in blocks for name in names] + self.projections


def structure_of(model: nn.Module) -> Structure:
    """Say where the blocks of a Hugging Face transformer are.

    Raises:
        InputError: the model is of no family in ``FAMILIES``.
    """
    family = getattr(getattr(model, "config", None), "model_type", None)
    if family not in FAMILIES:
        raise InputError(
            f"{type(model).__name__} (model type {family!r}) is of no known family; known are "
            f"{', '.join(sorted(FAMILIES))}. Name the weights yourself where there is an option "
            "for it, or add an entry to FAMILIES in lightning_compress/models/structure.py."
        )
    pattern = re.compile(
        r"(.+\.)?" + FAMILIES[family].blocks.replace(".", r"\.").replace("*", r"\d+")
    )
    layers = [name for name, _ in model.named_modules() if pattern.fullmatch(name)]
    blocks = [block for name in layers for block in _blocks(model, name)]
    compact = [name for name, module in model.named_modules() if isinstance(module, CompactBlock)]
    around = [f"{name}.{projection}" for name in compact for projection in ("down", "up")]
    leaving = [
        f"{name}.old.{index}"
        for name, module in model.named_modules()
        if isinstance(module, Choice)
        for index in range(len(module.old))
    ]
    return Structure(family, layers, blocks, around, leaving)


def _blocks(model: nn.Module, layer: str) -> list[str]:
    """Names of the family's own blocks in a layer: itself, or what it holds."""
    module = model.get_submodule(layer)
    if isinstance(module, CompactBlock):
        return [f"{layer}.layers.{index}" for index in range(len(module.layers))]
    if isinstance(module, Choice):
        return _blocks(model, f"{layer}.new")
    return [layer]


def units_of(model: nn.Module, kind: UnitKind) -> list[Units]:
    """The heads or the neurons of every block of a Hugging Face transformer, first to last.

    In a model with grouped-query attention a head is a key-value head with its query heads.

    Raises:
        InputError: the model is of no known family.
    """
    return units_in(model, structure_of(model).blocks, kind)


def units_in(model: nn.Module, blocks: Sequence[str], kind: UnitKind) -> list[Units]:
    """The same of some blocks, by their names."""
    entry = FAMILIES[structure_of(model).family]
    projections = entry.heads if kind == "heads" else entry.neurons
    found = []
    for layer, block in enumerate(blocks):
        rows = outputs_of(linear_at(model, f"{block}.{projections.inputs[-1]}"))
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
            )
        )
    return found


def transformer_in(module: nn.Module) -> "PreTrainedModel | None":
    """The Hugging Face model inside a module: itself, or the first one found, or None."""
    from transformers import PreTrainedModel

    return next((child for child in module.modules() if isinstance(child, PreTrainedModel)), None)
