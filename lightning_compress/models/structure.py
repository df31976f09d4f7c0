"""Where the blocks of a Hugging Face transformer are, and which linear layers they hold.

A family is one entry of ``FAMILIES``: module names, nothing else.
"""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from lightning_compress.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Family:
    """Module names of one architecture: ``blocks`` inside its base model, ``linear`` in a block.

    A ``*`` in ``blocks`` stands for one index.
    """

    blocks: str
    linear: tuple[str, ...]


_BERT = Family(
    blocks="encoder.layer.*",
    linear=(
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    ),
)

FAMILIES = {
    "bert": _BERT,
    "roberta": _BERT,
    "electra": _BERT,
    "distilbert": Family(
        blocks="transformer.layer.*",
        linear=(
            "attention.q_lin",
            "attention.k_lin",
            "attention.v_lin",
            "attention.out_lin",
            "ffn.lin1",
            "ffn.lin2",
        ),
    ),
    "albert": Family(
        blocks="encoder.albert_layer_groups.*.albert_layers.*",
        linear=(
            "attention.query",
            "attention.key",
            "attention.value",
            "attention.dense",
            "ffn",
            "ffn_output",
        ),
    ),
    "gpt2": Family(
        blocks="h.*",
        linear=("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"),
    ),
    "llama": Family(
        blocks="layers.*",
        linear=(
            "self_attn.q_proj",
            "self_attn.k_proj",
            "self_attn.v_proj",
            "self_attn.o_proj",
            "mlp.gate_proj",
            "mlp.up_proj",
            "mlp.down_proj",
        ),
    ),
}


@dataclass(frozen=True)
class Structure:
    """The structure of one model; every name is relative to that model.

    ``blocks`` are the names of the transformer blocks, first to last.
    """

    family: str
    blocks: list[str]

    def linear_names(self) -> list[str]:
        """Names of the linear layers (``nn.Linear`` or ``Conv1D``) inside the blocks."""
        return [f"{block}.{name}" for block in self.blocks for name in FAMILIES[self.family].linear]


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
    return Structure(family, [name for name, _ in model.named_modules() if pattern.fullmatch(name)])


def transformer_in(module: nn.Module) -> "PreTrainedModel | None":
    """The Hugging Face model inside a module: itself, or the first one found, or None."""
    from transformers import PreTrainedModel

    return next((child for child in module.modules() if isinstance(child, PreTrainedModel)), None)
