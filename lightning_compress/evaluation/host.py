"""Facts about the machine and the packages that a report was measured with."""

import platform
import subprocess
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import psutil
import torch

from lightning_compress.models import modeling_kernels

_PACKAGES = ("lightning-compress", "torch", "lightning", "transformers", "torchmetrics")


_OPTIONAL = ("onnx", "onnxruntime", "openvino", "executorch")


@dataclass(frozen=True)
class Host:
    """A machine.

    Attributes:
        cpu: the processor's model.
        threads: number of CPU threads that torch computes with.
        memory_bytes: bytes of main memory.
        accelerators: names of the GPUs.
        int8_kernel: what multiplies int8 matrices on the CPU in PyTorch, see
            :mod:`lightning_compress.models.modeling_kernels`.
    """

    cpu: str
    threads: int
    memory_bytes: int
    accelerators: list[str]
    int8_kernel: str


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
        memory_bytes=psutil.virtual_memory().total,
        accelerators=accelerators,
        int8_kernel=modeling_kernels.CPU_KERNEL,
    )


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that measurements depend on."""
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
