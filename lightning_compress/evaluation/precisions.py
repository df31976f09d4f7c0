"""What is known against a precision in a runtime and on a device."""

import platform

import torch

from lightning_compress.evaluation.host import against_bf16

WEIGHTS_ONLY = (
    "weights only: they become floating-point numbers to be multiplied, which saves memory, not "
    "time"
)
UNFUSED = "eager: each step of rounding is a pass over memory of its own; compile fuses them"


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
