"""A model in one precision or another, by the names that reports give them."""

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import nn

from lightning_compress.models.manifest import QUANTIZATION_EDIT, manifest_of
from lightning_compress.quantization.quantize import quantize_
from lightning_compress.types import Batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Precision = Literal[
    "fp32", "bf16", "fp16", "int8-weight", "int4-weight", "int8-dynamic", "int8-static"
]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


def own_precision(model: nn.Module) -> str | None:
    """The precision that a quantized model is in; None of one that can be cast to any."""
    schemes = [str(e["scheme"]) for e in manifest_of(model) if e["edit"] == QUANTIZATION_EDIT]
    return schemes[0] if schemes else None


def in_precision(
    model: "PreTrainedModel",
    precision: str,
    device: str,
    calibration: Sequence[Batch],
    *,
    symmetric: bool = False,
) -> "PreTrainedModel":
    """A copy of a model in a precision on a device.

    Args:
        model: it stays as it is.
        precision: one of ``PRECISIONS``; of a quantized model its own.
        device: such as ``cpu``.
        calibration: training examples, for ``int8-static``.
        symmetric: whether its steps are counted from zero.

    Raises:
        InputError: it does not work; the message says why.
    """
    made = copy.deepcopy(model)
    nn.Module.to(made, device=device)
    if precision == own_precision(model):
        return made
    nn.Module.to(made, dtype=torch.float32)
    if precision != "fp32":
        quantize_(made, precision, calibration=calibration, symmetric=symmetric)
    return made
