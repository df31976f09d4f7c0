"""Trace a model for export: tensors in a fixed order in, logits out."""

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lightning_compress.models.forward import logits_in, most_tokens, without_cache
from lightning_compress.types import main_input

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_BATCH, _LENGTH = 2, 16  # shape traced with; torch.export specializes dimensions of size 1


class Traced(nn.Module):
    """A model that takes its inputs by position and returns logits only.

    Args:
        model: a transformer in eval mode.
        names: names of its inputs, in order.
    """

    def __init__(self, model: "PreTrainedModel", names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names = model, tuple(names)
        self.options = without_cache(model)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the logits [B, C] or [B, S, V] of integer inputs [B, S], or of pixels."""
        given = dict(zip(self.names, inputs, strict=True))
        return logits_in(self.model(**given, **self.options), self.model, given)


def input_names(model: "PreTrainedModel") -> list[str]:
    """The inputs of an exported model; token types only if the model has several."""
    known = inspect.signature(model.forward).parameters
    if "pixel_values" in known:
        return ["pixel_values"]
    names = ["input_ids", "attention_mask"]
    if "token_type_ids" in known and getattr(model.config, "type_vocab_size", 0) > 1:
        names.append("token_type_ids")
    return names


def named_inputs(names: Sequence[str], batch: Mapping[str, Tensor]) -> list[Tensor]:
    """The named inputs of a batch, each [B, S] int64, or pixels [B, C, H, W].

    A missing attention mask is all ones, missing token types are zeros.
    """
    ids = main_input(batch)
    usual = {"attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    return [(usual | dict(batch))[name] for name in names]


def program_of(
    model: "PreTrainedModel", *, max_batch_size: int | None = None
) -> torch.export.ExportedProgram:
    """Trace a model for batches of any length and any size, or at most ``max_batch_size``.

    The inputs of the program are those of :func:`input_names`. Images are of the model's size.
    """
    given, shape = _traced_with(model, max_batch_size)
    with torch.no_grad():
        return torch.export.export(
            Traced(model, input_names(model)), given, dynamic_shapes=((shape,) * len(given),)
        )


def traced_again(
    module: nn.Module, model: "PreTrainedModel", *, max_batch_size: int | None = None
) -> torch.export.ExportedProgram:
    """Trace a module derived from the graph of :func:`program_of`, with the same dynamic shapes."""
    given, shape = _traced_with(model, max_batch_size)
    with torch.no_grad():
        return torch.export.export(module, given, dynamic_shapes=(shape,) * len(given))


def example_inputs(model: "PreTrainedModel") -> list[Tensor]:
    """Blank inputs of one example, in the order of :func:`input_names`."""
    return [one[:1] for one in _traced_with(model, None)[0]]


def _traced_with(
    model: "PreTrainedModel", max_batch_size: int | None
) -> tuple[tuple[Tensor, ...], dict[int, Any]]:
    """Example inputs, and their dynamic dimensions."""
    names = input_names(model)
    shape = {0: torch.export.Dim("batch", max=max_batch_size)}
    if names == ["pixel_values"]:
        return (_blank_images(model),), shape
    ids = torch.zeros(_BATCH, _LENGTH, dtype=torch.long)
    shape[1] = torch.export.Dim("sequence", max=most_tokens(model))
    return tuple(named_inputs(names, {"input_ids": ids})), shape


def _blank_images(model: "PreTrainedModel") -> Tensor:
    """[B, C, H, W] of the size that the model reads."""
    config: Any = model.config
    size = config.image_size
    height, width = (size, size) if isinstance(size, int) else size
    return torch.zeros(_BATCH, config.num_channels, height, width)
