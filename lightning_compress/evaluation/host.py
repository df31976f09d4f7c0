"""Facts about the machine that a figure was measured on.

What is known against a precision in a runtime and on a device.
"""

import os
import platform
import subprocess
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import torch

from lightning_compress.quantization.precisions import PRECISIONS, Precision

_PACKAGES = ("lightning-compress", "torch", "lightning", "transformers", "torchmetrics")


_OPTIONAL = ("onnx", "onnxruntime", "openvino", "executorch")


@dataclass(frozen=True)
class Host:
    """A machine; ``threads`` are those that torch computes with on the CPU."""

    cpu: str
    threads: int
    memory_bytes: int
    accelerators: list[str]


def host_facts() -> Host:
    """Describe this machine."""
    accelerators = [
        torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())
    ]
    if torch.backends.mps.is_available():
        accelerators.append("Apple GPU")
    return Host(
        cpu=_cpu_model(),
        threads=torch.get_num_threads(),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        accelerators=accelerators,
    )


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that the figures depend on."""
    return {
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in _PACKAGES},
        **{name: metadata.version(name) for name in _OPTIONAL if find_spec(name) is not None},
    }


def _cpu_model() -> str:
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    if platform.system() == "Darwin":
        command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return platform.processor() or platform.machine()


def bf16_caveat(device: str) -> str | None:
    """Why bf16 is not faster than fp32 on a device; None where no reason is known."""
    return _missing_instructions(PRECISIONS["bf16"], device)


def precision_caveat(precision: str, device: str, *, fused: bool) -> str | None:
    """Why a precision is not faster than fp32 on a device; None where no reason is known.

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
    # AMD's GPUs have them all.
    nvidia = kind == "cuda" and torch.version.hip is None
    if nvidia and torch.cuda.get_device_capability(device)[0] < (needed.cuda or 0):
        return f"this GPU {needed.missing}"
    return None
