"""Why a precision may not be faster than fp32 in a runtime and on a device."""

import platform

import torch

from lightning_compress.quantization.precisions import PRECISIONS, Precision


def precision_caveat(precision: str, device: str, *, fused: bool) -> str | None:
    """Why a precision is not faster than fp32; None if no reason is known.

    Args:
        precision: one of ``PRECISIONS``.
        device: such as ``cpu``.
        fused: whether the runtime fuses consecutive operations.
    """
    chosen = PRECISIONS[precision]
    if chosen.caveat is not None:
        return chosen.caveat
    if not fused and chosen.unfused_caveat is not None:
        return chosen.unfused_caveat
    return _missing_instructions(chosen, device)


def _missing_instructions(precision: Precision, device: str) -> str | None:
    needed, kind = precision.instructions, torch.device(device).type
    if needed is None:
        return None
    if kind == "cpu" and platform.machine().lower() in ("x86_64", "amd64"):
        present = torch.cpu.get_capabilities()
        if not any(present.get(name) for name in needed.x86):
            return f"this CPU {needed.missing}"
    # AMD's GPUs have all of these instructions.
    nvidia = kind == "cuda" and torch.version.hip is None
    if nvidia and torch.cuda.get_device_capability(device)[0] < (needed.cuda or 0):
        return f"this GPU {needed.missing}"
    return None
