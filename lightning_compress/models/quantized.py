"""Quantized modules of a model: which they are, and how they come back."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from lightning_compress.errors import InputError
from lightning_compress.models.manifest import Edit, manifest_of
from lightning_compress.models.modeling_compressed import put_
from lightning_compress.models.modeling_quantized import (
    QuantizedEmbedding,
    QuantizedLinear,
    quantized_module,
)

QUANTIZATION_EDIT = "quantize"
PREPARATION_EDIT = "prepare_quantization"


def quantized_specs(model: nn.Module) -> dict[str, dict[str, Any]]:
    """What the quantized modules of a model are, as plain data, by name."""
    return {
        name: module.spec()
        for name, module in model.named_modules()
        if isinstance(module, QuantizedLinear | QuantizedEmbedding)
    }


def place_quantized_(model: nn.Module, specs: Mapping[str, Mapping[str, Any]]) -> None:
    """Give a model modules as of :func:`quantized_specs`, in place; their weights are unset."""
    there = quantized_specs(model)
    for name, spec in specs.items():
        if there.get(name) != spec:
            device = model.get_submodule(name).weight.device
            put_(model, name, quantized_module(dict(spec)).to(device))  # type: ignore[arg-type]


def cast_as_recorded_(model: nn.Module, edits: Iterable[Edit]) -> None:
    """Cast a model to the type of sixteen bits that edits name, if they do."""
    for edit in edits:
        if edit["edit"] == QUANTIZATION_EDIT and "dtype" in edit:
            model.to(getattr(torch, edit["dtype"]))


def require_float(model: nn.Module, remedy: str, *, prepared: bool = False) -> None:
    """See that a model is not quantized, nor prepared for it, which may be allowed.

    Raises:
        InputError: it is.
    """
    for edit in manifest_of(model):
        if edit["edit"] == QUANTIZATION_EDIT:
            raise InputError(f"{type(model).__name__} is quantized, to {edit['scheme']}: {remedy}")
        if edit["edit"] == PREPARATION_EDIT and not prepared:
            raise InputError(
                f"{type(model).__name__} is being trained to be quantized, to {edit['scheme']}: "
                "convert it first"
            )
