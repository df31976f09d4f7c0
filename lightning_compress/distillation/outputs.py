"""The outputs of a model that distillation compares: logits, hidden states and attention."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from lightning_compress.models import structure_of, units_of
from lightning_compress.models.calibration import token_mask
from lightning_compress.models.forward import logits_in, model_inputs
from lightning_compress.models.hooks import Call, Hook, after_calls
from lightning_compress.models.layers import layer_count
from lightning_compress.models.sentence_embedding import mean_over_tokens
from lightning_compress.models.structure import Units, units_in
from lightning_compress.models.switch import ReplacementSwitch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class RequestedOutputs:
    """What to return besides the logits.

    Args:
        hidden: layers, counted from 0, whose hidden states are returned.
        attention: layers whose query, key and value projections are returned.
        embedding: whether the text embedding is returned.
    """

    hidden: frozenset[int] = frozenset()
    attention: frozenset[int] = frozenset()
    embedding: bool = False

    def __or__(self, other: "RequestedOutputs") -> "RequestedOutputs":
        """The union of two requests."""
        return RequestedOutputs(
            self.hidden | other.hidden,
            self.attention | other.attention,
            self.embedding or other.embedding,
        )


@dataclass(frozen=True)
class Attention:
    """Query, key and value projections of a layer, before rotary embeddings.

    Args:
        query, key, value: [B, S, W]; W may differ between them.
        heads: number of query heads.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    heads: int


@dataclass(frozen=True)
class TopK:
    """The K largest logits of a language model and the normalizer of the softmax.

    Args:
        values: [..., K] logits, the largest first.
        indices: [..., K] token ids.
        logsumexp: by temperature, [...] of all logits divided by the temperature.
    """

    values: Tensor
    indices: Tensor
    logsumexp: Mapping[float, Tensor]

    def __getitem__(self, rows: Tensor) -> "TopK":
        """The entries at some positions only."""
        rest = {temperature: value[rows] for temperature, value in self.logsumexp.items()}
        return TopK(self.values[rows], self.indices[rows], rest)


@dataclass(frozen=True)
class Outputs:
    """Outputs of a model for a batch.

    Args:
        logits: [B, C] of a classifier, [B, S, V] of a language model, or the largest of the latter.
        mask: [B, S], True at tokens, False at padding.
        hidden: by layer, its output [B, S, H].
        attention: by layer, its projections.
        embedding: [B, H], the mean over tokens of the last layer's output.
    """

    logits: Tensor | TopK
    mask: Tensor
    hidden: Mapping[int, Tensor] = field(default_factory=dict)
    attention: Mapping[int, Attention] = field(default_factory=dict)
    embedding: Tensor | None = None


def run_with_outputs(
    model: "PreTrainedModel", batch: Mapping[str, Tensor], requested: RequestedOutputs
) -> Outputs:
    """Run a model on a batch and return the requested outputs.

    Args:
        model: a Hugging Face model; of a known family if attention is requested.
        batch: ``input_ids`` [B, S], or ``pixel_values``, and the other inputs of the model.
        requested: besides the logits.
    """
    per_token = bool(requested.hidden or requested.attention or requested.embedding)
    mask = token_mask(dict(batch), model if per_token else None)
    states = bool(requested.hidden) or requested.embedding
    layered = layer_count(model) is not None
    options: dict[str, Any] = {"output_hidden_states": True} if states and not layered else {}
    with (
        _attention_inputs(model, requested.attention) as attention,
        _layer_outputs(model if states and layered else None) as layers,
    ):
        inputs = model_inputs(model, batch)
        found = model(**inputs, **options)
    hidden: Sequence[Tensor] = layers or (found.hidden_states[1:] if states else ())
    return Outputs(
        logits=logits_in(found, model, inputs),
        mask=mask,
        hidden={layer: hidden[layer] for layer in requested.hidden},
        attention=attention,
        embedding=mean_over_tokens(hidden[-1], mask) if requested.embedding else None,
    )


def depth_of(model: "PreTrainedModel") -> int:
    """Number of layers, counting a shared layer as often as it is used."""
    layers = layer_count(model)
    return int(model.config.num_hidden_layers) if layers is None else layers


def heads_of(model: nn.Module) -> list[Units]:
    """The heads of each layer, first to last; for a compact block, those of its last narrow layer.

    For a model whose layers share one block, the heads of that block.

    Raises:
        InputError: the model is of no known family.
    """
    if layer_count(model) is None:
        return units_of(model, "heads")
    structure, blocks = structure_of(model), []
    for name in structure.layers:
        layer = model.get_submodule(name)
        way = (
            ("successor." if layer.runs_successor else "predecessor.")
            if isinstance(layer, ReplacementSwitch)
            else ""
        )
        inside = [
            block
            for block in (*structure.blocks, *structure.predecessors)
            if f"{block}.".startswith(f"{name}.{way}")
        ]
        blocks.append(inside[-1])
    return units_in(model, blocks, "heads")


@contextmanager
def _layer_outputs(model: "PreTrainedModel | None") -> Iterator[list[Tensor]]:
    """The output of every layer while the model runs; the last one after the model's final norm.

    ``output_hidden_states`` of transformers would include the layers inside compact blocks.
    """
    found: list[Tensor] = []
    if model is None:
        yield found
        return

    def append(call: Call) -> None:
        found.append(call.hidden_output)

    def replace_last(call: Call) -> None:
        found[-1] = call.output[0]

    layers = [model.get_submodule(name) for name in structure_of(model).layers]
    with after_calls([*((layer, append) for layer in layers), (model.base_model, replace_last)]):
        yield found


@contextmanager
def _attention_inputs(model: nn.Module, layers: frozenset[int]) -> Iterator[dict[int, Attention]]:
    """The attention projections of some layers, filled when the context ends."""
    found: dict[int, Attention] = {}
    if not layers:
        yield found
        return
    units = heads_of(model)
    # By projection, then by layer in the order of the calls: layers may share one block.
    outputs: list[list[tuple[Units, Tensor]]] = [[] for _ in units[0].inputs]

    def keep(projection: int, one: Units) -> Hook:
        return lambda call: outputs[projection].append((one, call.output))

    hooks = [
        (model.get_submodule(name), keep(projection, one))
        for one in units
        for projection, name in enumerate(one.inputs)
    ]
    with after_calls(hooks):
        yield found
    for layer in layers:
        one = outputs[0][layer][0]
        query, key, value = (
            part for calls in outputs for part in calls[layer][1].chunk(one.parts, dim=-1)
        )
        size = value.shape[-1] // one.count
        found[layer] = Attention(query, key, value, query.shape[-1] // size)
