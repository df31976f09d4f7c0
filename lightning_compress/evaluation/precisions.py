"""The precisions of the report: what they are, and what is known against them."""

import copy
import platform
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import nn

from lightning_compress.evaluation.examples import Batch
from lightning_compress.evaluation.host import against_bf16
from lightning_compress.models.manifest import manifest_of
from lightning_compress.models.quantized import QUANTIZATION_EDIT
from lightning_compress.quantization import quantize_

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Precision = Literal[
    "fp32", "bf16", "fp16", "int8-weight", "int4-weight", "int8-dynamic", "int8-static"
]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
WEIGHTS_ONLY = (
    "weights only: they become floating-point numbers to be multiplied, which saves memory, not "
    "time"
)
UNFUSED = "eager: each step of rounding is a pass over memory of its own; compile fuses them"


def own_precision(model: nn.Module) -> str | None:
    """The precision that a quantized model is in; None of one that can be cast to any."""
    schemes = [str(e["scheme"]) for e in manifest_of(model) if e["edit"] == QUANTIZATION_EDIT]
    return schemes[0] if schemes else None


def in_precision(
    model: "PreTrainedModel", precision: str, device: str, calibration: Sequence[Batch]
) -> "PreTrainedModel":
    """A copy of a model in a precision on a device.

    Args:
        model: it stays as it is.
        precision: one of ``PRECISIONS``; of a quantized model its own.
        device: such as ``cpu``.
        calibration: training examples, for ``int8-static``.

    Raises:
        InputError: it does not work; the message says why.
    """
    made = copy.deepcopy(model)
    nn.Module.to(made, device=device)
    if precision == own_precision(model):
        return made
    nn.Module.to(made, dtype=torch.float32)
    if precision != "fp32":
        quantize_(made, precision, calibration=calibration)
    return made


def against(precision: str, runtime: str, device: str) -> str | None:
    """Why a precision is not faster in a runtime and on a device; None if nothing is known."""
    if precision == "bf16":
        return against_bf16(device)
    if precision == "fp16":
        return _against_fp16(device)
    if precision.endswith("-weight"):
        return WEIGHTS_ONLY
    if precision.startswith("int8"):
        return UNFUSED if runtime == "eager" else _against_int8(device)
    return None


def _against_fp16(device: str) -> str | None:
    if torch.device(device).type == "cpu" and _x86():
        has = torch.cpu.get_capabilities()
        if not (has.get("avx512_fp16") or has.get("amx_fp16")):
            return "this CPU has no fp16 instructions: fp16 saves memory, not time"
    return None


def _against_int8(device: str) -> str | None:
    if torch.device(device).type == "cpu" and _x86():
        has = torch.cpu.get_capabilities()
        if not (has.get("avx512_vnni") or has.get("avx_vnni") or has.get("amx_int8")):
            return "this CPU has no instructions for products of whole numbers (VNNI, AMX)"
    return None


def _x86() -> bool:
    return platform.machine().lower() in ("x86_64", "amd64")
