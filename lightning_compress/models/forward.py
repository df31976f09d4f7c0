"""Running a Hugging Face model: inputs, longest sequence, eval mode, logits, device."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from lightning_compress.errors import InputError, first_line
from lightning_compress.models.families import FAMILIES
from lightning_compress.models.sentence_embedding import embeddings_of


def model_inputs(model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries of a batch that the model's ``forward`` names, without the labels.

    A batch also carries ids, and a tokenizer may write token types that its model does not know.
    """
    known = inspect.signature(model.forward).parameters
    return {name: value for name, value in batch.items() if name in known and name != "labels"}


def most_tokens(model: nn.Module) -> int | None:
    """The longest sequence, in tokens, that a model has positions for; None without a bound.

    RoBERTa and its many relatives count positions from behind the padding index, which their
    position embeddings have as their own.
    """
    positions: int | None = getattr(model.config, "max_position_embeddings", None)
    if positions is None:
        return None
    for name, module in model.named_modules():
        padding = getattr(module, "padding_idx", None)
        if padding is not None and name.endswith("embeddings.position_embeddings"):
            return positions - int(padding) - 1
    return positions


def known_tokens(model: nn.Module) -> int | None:
    """How many token ids a model has embeddings for; None if it reads no tokens."""
    embeddings = model.get_input_embeddings()  # type: ignore[operator]  # of any transformer
    rows: int | None = getattr(embeddings, "num_embeddings", None)
    return rows


def image_tokens(model: nn.Module) -> int:
    """How many tokens a model makes of an image, the patches and those of its own.

    Raises:
        InputError: its family is unknown, or is not one of images.
    """
    config = cast(Any, model).config
    family = FAMILIES.get(config.model_type)
    if family is None or family.image_positions is None:
        raise InputError(
            f"{type(model).__name__} is of no family that reads images; known are "
            + ", ".join(name for name, one in FAMILIES.items() if one.image_positions)
        )
    base: Any = model.base_model
    positions: Tensor = base.get_parameter(family.image_positions)
    return positions.shape[1]


def logits_in(output: Any, model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """The logits in what a Hugging Face model returns.

    Those of the start and the end of an answer, [B, S] each, are put side by side, [B, S, 2], as
    the layer that computes them has them. Embeddings of texts, [B, H], count as logits.

    Args:
        output: what the model returned.
        model: states how embeddings are computed.
        inputs: of its forward.

    Raises:
        InputError: there are none.
    """
    if "logits" in output:
        found: Tensor = output.logits
        return found
    if "start_logits" in output:
        return torch.stack([output.start_logits, output.end_logits], -1)
    embeddings = embeddings_of(model, inputs, output[0])
    if embeddings is None:
        raise InputError(
            f"{type(model).__name__} gives no logits: use a model with the head of a task, or "
            "declare its task, such as sentence-similarity (model.task, --task of a command)"
        )
    return embeddings


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Put models in eval mode, and each of their modules back in its own mode afterwards."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def inputs_for(model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries of a batch that the model takes, on the model's device."""
    device = device_of(model)
    return {name: value.to(device) for name, value in model_inputs(model, batch).items()}


def without_cache(model: nn.Module) -> dict[str, bool]:
    """The keyword with which a causal model fills no cache for the next tokens."""
    takes_cache = "use_cache" in inspect.signature(model.forward).parameters
    return {"use_cache": False} if takes_cache else {}


def outputs_by(model: nn.Module, call: Callable[..., Any]) -> Callable[..., Any]:
    """Make ``call`` (the model, or what was compiled from it) compute its outputs and nothing else.

    A causal model would also fill a cache for the next tokens, which is not needed here.
    """
    options = without_cache(model)

    def outputs(**inputs: Tensor) -> Any:
        with torch.inference_mode():
            return call(**inputs, **options)

    return outputs


def logits_by(model: nn.Module, call: Callable[..., Any]) -> Callable[..., Tensor]:
    """As :func:`outputs_by`, of which it gives the logits."""
    outputs = outputs_by(model, call)

    def logits(**inputs: Tensor) -> Tensor:
        return logits_in(outputs(**inputs), model, inputs)

    return logits


def require_runs(model: nn.Module, batch: Mapping[str, Tensor]) -> Any:
    """The outputs of a model, in eval mode, whatever they are.

    Raises:
        InputError: the batch lacks inputs of the model, or has some that it cannot take.
    """
    inputs = inputs_for(model, batch)
    try:
        if not inputs:
            raise ValueError(f"it takes none of the batch's {', '.join(batch)}")
        with evaluating(model):
            return outputs_by(model, model)(**inputs)
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise InputError(
            f"{type(model).__name__} cannot run on this batch, give it all inputs of its forward: "
            f"{first_line(error)}"
        ) from error


def device_of(model: nn.Module) -> torch.device:
    """The device of a model's first parameter."""
    return next(model.parameters()).device


def synchronize(device: torch.device) -> None:
    """Wait until a device has finished all queued work."""
    if device.type != "cpu":
        torch.get_device_module(device).synchronize()
