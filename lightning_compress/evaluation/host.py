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
    """Why bf16 is slow on a device; None where nothing is known against it."""
    kind = torch.device(device).type
    if kind == "cuda" and not _bf16_on_cuda(device):
        return "this GPU has no bf16 instructions: bf16 saves memory, not time"
    if kind == "cpu" and platform.machine().lower() in ("x86_64", "amd64"):
        has = torch.cpu.get_capabilities()
        if not (has.get("avx512_bf16") or has.get("amx_bf16")):
            return (
                "this CPU has no bf16 instructions (AVX512-BF16, AMX): bf16 saves memory, not time"
            )
    return None


def _bf16_on_cuda(device: str) -> bool:
    """NVIDIA's from Ampere on; AMD's all."""
    return torch.version.hip is not None or torch.cuda.get_device_capability(device)[0] >= 8


WEIGHTS_ONLY = (
    "weights only: they become floating-point numbers to be multiplied, which saves memory, not "
    "time"
)


UNFUSED = "eager: each step of rounding is a pass over memory of its own; compile fuses them"


def precision_caveat(precision: str, device: str, *, fused: bool) -> str | None:
    """Why a precision is not faster in a runtime and on a device; None if nothing is known."""
    if precision == "bf16":
        return bf16_caveat(device)
    if precision == "fp16":
        return _fp16_caveat(device)
    if precision.endswith("-weight"):
        return WEIGHTS_ONLY
    if precision.startswith("int8"):
        return _int8_caveat(device) if fused else UNFUSED
    return None


def _fp16_caveat(device: str) -> str | None:
    if torch.device(device).type == "cpu" and _x86():
        has = torch.cpu.get_capabilities()
        if not (has.get("avx512_fp16") or has.get("amx_fp16")):
            return "this CPU has no fp16 instructions: fp16 saves memory, not time"
    return None


def _int8_caveat(device: str) -> str | None:
    if torch.device(device).type == "cpu" and _x86():
        has = torch.cpu.get_capabilities()
        if not (has.get("avx512_vnni") or has.get("avx_vnni") or has.get("amx_int8")):
            return "this CPU has no instructions for products of whole numbers (VNNI, AMX)"
    return None


def _x86() -> bool:
    return platform.machine().lower() in ("x86_64", "amd64")
