"""What the losses look at in a model: logits, hidden states, and what attention is made of."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lightning_compress.models import structure_of, units_of
from lightning_compress.models.forward import model_inputs
from lightning_compress.models.layers import layer_count
from lightning_compress.models.structure import Units, units_in
from lightning_compress.models.switch import Choice

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Wanted:
    """What to look at beside the logits, by layers counted from 0."""

    hidden: frozenset[int] = frozenset()
    attention: frozenset[int] = frozenset()
    embedding: bool = False

    def __or__(self, other: "Wanted") -> "Wanted":
        """What either wants."""
        return Wanted(
            self.hidden | other.hidden,
            self.attention | other.attention,
            self.embedding or other.embedding,
        )


@dataclass(frozen=True)
class Attention:
    """The projections that attention is made of, before any rotation.

    Args:
        query, key, value: [B, S, W]; W may differ between them.
        heads: of the queries.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    heads: int


@dataclass(frozen=True)
class TopK:
    """The largest logits of a language model, with what the others add up to.

    Args:
        values: [..., K] logits, the largest first.
        indices: [..., K] their tokens.
        logsumexp: [...] of all logits divided by the temperature, by temperature.
    """

    values: Tensor
    indices: Tensor
    logsumexp: Mapping[float, Tensor]

    def __getitem__(self, rows: Tensor) -> "TopK":
        """Of some positions only."""
        rest = {temperature: value[rows] for temperature, value in self.logsumexp.items()}
        return TopK(self.values[rows], self.indices[rows], rest)


@dataclass(frozen=True)
class Outputs:
    """What a model says of a batch.

    Args:
        logits: [B, C] of a classifier, [B, S, V] of a language model, or the largest of the latter.
        mask: [B, S], true at tokens, false at padding.
        hidden: [B, S, H] behind a layer.
        attention: inside a layer.
        embedding: [B, H], the mean over tokens of what the last layer says.
    """

    logits: Tensor | TopK
    mask: Tensor
    hidden: Mapping[int, Tensor] = field(default_factory=dict)
    attention: Mapping[int, Attention] = field(default_factory=dict)
    embedding: Tensor | None = None


def observe(model: "PreTrainedModel", batch: Mapping[str, Tensor], wanted: Wanted) -> Outputs:
    """Run a model on a batch and look at it.

    Args:
        model: a Hugging Face model; of a known family, if attention is wanted.
        batch: ``input_ids`` [B, S] and what else it takes.
        wanted: beside the logits.
    """
    mask = batch.get("attention_mask")
    mask = torch.ones_like(batch["input_ids"]) if mask is None else mask
    states = bool(wanted.hidden) or wanted.embedding
    layered = layer_count(model) is not None
    options: dict[str, Any] = {"output_hidden_states": True} if states and not layered else {}
    with (
        _attention_inputs(model, wanted.attention) as attention,
        _layer_outputs(model if states and layered else None) as said,
    ):
        found = model(**model_inputs(model, batch), **options)
    hidden: Sequence[Tensor] = said or (found.hidden_states[1:] if states else ())
    return Outputs(
        logits=found.logits,
        mask=mask.bool(),
        hidden={layer: hidden[layer] for layer in wanted.hidden},
        attention=attention,
        embedding=mean_over_tokens(hidden[-1], mask) if wanted.embedding else None,
    )


def depth_of(model: "PreTrainedModel") -> int:
    """How many layers a batch goes through."""
    layers = layer_count(model)
    return int(model.config.num_hidden_layers) if layers is None else layers


def heads_of(model: nn.Module) -> list[Units]:
    """The heads of each layer, first to last; of a compact block those of its last narrow layer.

    Where the layers are one block, used again and again, those of the block.

    Raises:
        InputError: the model is of no known family.
    """
    if layer_count(model) is None:
        return units_of(model, "heads")
    structure, blocks = structure_of(model), []
    for name in structure.layers:
        layer = model.get_submodule(name)
        way = ("new." if layer.through_new else "old.") if isinstance(layer, Choice) else ""
        inside = [
            block
            for block in (*structure.blocks, *structure.leaving)
            if f"{block}.".startswith(f"{name}.{way}")
        ]
        blocks.append(inside[-1])
    return units_in(model, blocks, "heads")


def mean_over_tokens(states: Tensor, mask: Tensor) -> Tensor:
    """[B, H] means of [B, S, H] over the tokens that the mask [B, S] leaves."""
    weights = mask.to(states.dtype).unsqueeze(-1)
    return (states * weights).sum(1) / weights.sum(1).clamp(min=1)


@contextmanager
def _layer_outputs(model: "PreTrainedModel | None") -> Iterator[list[Tensor]]:
    """Fills itself while the model runs; the last as it leaves the model, behind a last norm.

    transformers, asked for hidden states, would also give those of the layers in compact blocks.
    """
    found: list[Tensor] = []
    if model is None:
        yield found
        return

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        found[-1] = output[0]

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)

    layers = structure_of(model).layers
    hooks = [
        *(model.get_submodule(name).register_forward_hook(keep) for name in layers),
        model.base_model.register_forward_hook(leave),
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _attention_inputs(model: nn.Module, layers: frozenset[int]) -> Iterator[dict[int, Attention]]:
    """Fills itself while the model runs."""
    found: dict[int, Attention] = {}
    if not layers:
        yield found
        return
    units = heads_of(model)
    # By projection, then by layer: in the order in which they run, for layers may share a block.
    said: list[list[tuple[Units, Tensor]]] = [[] for _ in units[0].inputs]

    def keep(outputs: list[tuple[Units, Tensor]], one: Units):  # type: ignore[no-untyped-def]
        return lambda module, inputs, output: outputs.append((one, output))  # a hook of torch's

    hooks = [
        model.get_submodule(name).register_forward_hook(keep(outputs, one))
        for one in units
        for name, outputs in zip(one.inputs, said, strict=True)
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
    for layer in layers:
        one = said[0][layer][0]
        query, key, value = (
            part for outputs in said for part in outputs[layer][1].chunk(one.parts, dim=-1)
        )
        size = value.shape[-1] // one.count
        found[layer] = Attention(query, key, value, query.shape[-1] // size)
