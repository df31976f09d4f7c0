"""What of a batch a model takes."""

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def model_inputs(model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries of a batch that the model's ``forward`` names, without the labels.

    A batch also carries ids, and a tokenizer may write token types that its model does not know.
    """
    known = inspect.signature(model.forward).parameters
    return {name: value for name, value in batch.items() if name in known and name != "labels"}


def most_tokens(config: "PreTrainedConfig") -> int | None:
    """The longest sequence that a model has positions for; None where there is no such bound."""
    positions: int | None = getattr(config, "max_position_embeddings", None)
    if positions is None:
        return None
    # RoBERTa's positions start after the padding index.
    return positions - (config.pad_token_id + 1 if config.model_type == "roberta" else 0)
