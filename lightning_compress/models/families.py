"""The supported model families. A family is one entry of ``FAMILIES``, by ``model_type``."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

UnitKind = Literal["heads", "neurons"]


@dataclass(frozen=True)
class Projections:
    """The linear layers before and after the heads, or the neurons, of a block.

    The outputs of each of ``inputs`` and the inputs of ``output`` belong to the units in order,
    the same number to each. ``parts`` is the number of projections fused in one layer, one after
    another: 3 for a fused query, key and value, 2 for a fused neuron and gate. The last of
    ``inputs`` computes the values. ``relative`` are projections of relative positions, which a
    model may go without: their outputs belong to the units as well.
    """

    inputs: tuple[str, ...]
    output: str
    parts: int = 1
    relative: tuple[str, ...] = ()


@dataclass(frozen=True)
class Family:
    """Names in one architecture: ``blocks`` inside its base model, the others inside a block.

    A ``*`` in ``blocks`` stands for one index. ``attention`` is the module that has the attribute
    ``head_size`` and keeps ``counts``, by attribute: the number of query ``heads``, or their
    ``width`` together. ``shared``: the layers of the model are one block, used again and again.
    ``inner``: the configuration's field for the number of neurons. ``norm_first``: a block's norms
    stand in front of attention and feed-forward layers, not behind their sums. ``causal``: a token
    sees only those before it. ``substitutable``: compact blocks can replace layers.

    ``relative_scores``: attention scores are not only products of queries and keys, but depend on
    relative positions too. ``shared_bias``: the argument of the attention's ``forward`` with such a
    bias [B, A, S, S] for each head of the dense model, one for all layers. ``not_in_first``:
    modules that the first layer of a dense model has as ``nn.Identity``. ``fixed_by``: fields of
    the configuration that make layers depend on their positions, where they are set.
    ``image_positions``: the parameter [1, S, H] of a model of images with the embeddings of the
    positions of its tokens.
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
    substitutable: bool = False
    relative_scores: bool = False
    shared_bias: str | None = None
    not_in_first: tuple[str, ...] = ()
    fixed_by: tuple[str, ...] = ()
    image_positions: str | None = None


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
    substitutable=True,
)
# A head is a key-value head here, with all the query heads that share it.
_LLAMA = Family(
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
)

_VIT = Family(
    blocks="layers.*",
    heads=Projections(
        inputs=("attention.q_proj", "attention.k_proj", "attention.v_proj"),
        output="attention.o_proj",
    ),
    neurons=Projections(inputs=("mlp.fc1",), output="mlp.fc2"),
    attention="attention",
    head_size="head_dim",
    counts={"num_attention_heads": "heads"},
    norm_first=True,
    substitutable=True,
    image_positions="embeddings.position_embeddings",
)


FAMILIES = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "camembert": _BERT,
    "electra": _BERT,
    "mpnet": Family(
        blocks="encoder.layer.*",
        heads=Projections(
            inputs=("attention.attn.q", "attention.attn.k", "attention.attn.v"),
            output="attention.attn.o",
        ),
        neurons=Projections(inputs=("intermediate.dense",), output="output.dense"),
        attention="attention.attn",
        head_size="attention_head_size",
        counts={"num_attention_heads": "heads", "all_head_size": "width"},
        relative_scores=True,
        shared_bias="position_bias",
    ),
    "modernbert": Family(
        blocks="layers.*",
        heads=Projections(inputs=("attn.Wqkv",), output="attn.Wo", parts=3),
        neurons=Projections(inputs=("mlp.Wi",), output="mlp.Wo", parts=2),
        attention="attn",
        head_size="head_dim",
        norm_first=True,
        not_in_first=("attn_norm",),
    ),
    "deberta-v2": Family(  # DeBERTa-v3 too
        blocks="encoder.layer.*",
        heads=Projections(
            inputs=(
                "attention.self.query_proj",
                "attention.self.key_proj",
                "attention.self.value_proj",
            ),
            output="attention.output.dense",
            relative=("attention.self.pos_key_proj", "attention.self.pos_query_proj"),
        ),
        neurons=Projections(inputs=("intermediate.dense",), output="output.dense"),
        attention="attention.self",
        head_size="attention_head_size",
        counts={"num_attention_heads": "heads", "all_head_size": "width"},
        relative_scores=True,
        fixed_by=("conv_kernel_size",),
    ),
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
        substitutable=True,
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
        substitutable=True,
        fixed_by=("scale_attn_by_inverse_layer_idx",),
    ),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma": _LLAMA,
    "vit": _VIT,
    "deit": _VIT,
}


def is_causal(config: "PreTrainedConfig") -> bool:
    """Whether tokens attend to preceding tokens only; False for families without an entry."""
    family = FAMILIES.get(config.model_type)
    return family is not None and (family.causal or bool(getattr(config, "is_decoder", False)))
