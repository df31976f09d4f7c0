"""The settings of a benchmark."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypedDict

import torch

from lightning_compress.errors import InputError, require_number
from lightning_compress.evaluation.runtimes.eager import torch_devices
from lightning_compress.evaluation.runtimes.runtime import precision_caveat
from lightning_compress.evaluation.runtimes.table import RUNTIMES, RuntimeName, available_runtimes
from lightning_compress.quantization.precisions import PRECISIONS, PrecisionName


class BenchmarkOptions(TypedDict, total=False):
    """The fields of :class:`BenchmarkSettings`, for functions that pass them on."""

    runtimes: Sequence[RuntimeName] | None
    precisions: Sequence[PrecisionName] | None
    devices: Sequence[str] | None
    batch_sizes: Sequence[int]
    latency_examples: int
    seconds: float
    threads: Sequence[int]
    timeout_s: float


@dataclass(frozen=True, kw_only=True)
class BenchmarkSettings:
    """What is measured, and for how long.

    Args:
        runtimes: ``eager`` and ``compile`` run the model in PyTorch; ``onnxruntime``, ``openvino``,
            ``executorch``, ``tensorrt`` and ``aotinductor`` run its export. None: all whose
            packages are installed.
        precisions: precisions that models are cast or quantized to. None: fp32, and bf16 on
            devices with bf16 instructions. A quantized model is measured in its own precision.
        devices: such as ``cpu`` or ``cuda:0``. None: every device of this machine.
        batch_sizes: batch sizes for throughput, each at least 1. The largest is also the batch size
            for quality, peak memory and speedup.
        latency_examples: number of real examples that latency is measured on, at least 1.
        seconds: time spent on each row and batch size, in seconds.
        threads: numbers of CPU threads, 0 for torch's current setting. Rates are measured with
            each, everything else with the first.
        timeout_s: seconds that preparing a model (quantizing, compiling, exporting and its first
            batches), and each later run in another process, may take.

    Raises:
        InputError: a setting is out of range, or the machine has no such device.
    """

    runtimes: Sequence[RuntimeName] | None = ("eager", "compile")
    precisions: Sequence[PrecisionName] | None = None
    devices: Sequence[str] | None = None
    batch_sizes: Sequence[int] = (1, 8, 32)
    latency_examples: int = 100
    seconds: float = 1.0
    threads: Sequence[int] = (0,)
    timeout_s: float = 900.0

    def __post_init__(self) -> None:
        for name in ("runtimes", "precisions", "devices", "batch_sizes", "threads"):
            value = getattr(self, name)
            if value is not None and len(value) == 0:
                raise InputError(f"{name} is empty: name at least one")
        for name, known in (("runtimes", RUNTIMES), ("precisions", PRECISIONS)):
            for value in getattr(self, name) or ():
                if value not in known:
                    raise InputError(f"{name}: there is no {value!r}; there are {', '.join(known)}")
        if self.latency_examples < 1:
            raise InputError(f"latency_examples must be at least 1, not {self.latency_examples}")
        for name, least in (("batch_sizes", 1), ("threads", 0)):
            if min(getattr(self, name)) < least:
                raise InputError(f"{name} must be at least {least}, not {min(getattr(self, name))}")
        for name, most in (("seconds", 3600), ("timeout_s", 86400)):
            require_number(name, getattr(self, name), least=1e-6, most=most)
        for device in self.devices or ():
            if device not in torch_devices():
                raise InputError(
                    f"devices: there is no {device} here, only {', '.join(torch_devices())}"
                )

    @property
    def batch_size(self) -> int:
        """Batch size for quality, peak memory and speedup."""
        return max(self.batch_sizes)

    def thread_counts(self) -> list[int]:
        """The numbers of CPU threads to measure with, each once; 0 is torch's current setting."""
        return list(dict.fromkeys(count or torch.get_num_threads() for count in self.threads))

    def runtime_names(self) -> Sequence[str]:
        """The runtimes to measure."""
        return available_runtimes() if self.runtimes is None else self.runtimes

    def device_names(self) -> Sequence[str]:
        """The devices to measure on."""
        return torch_devices() if self.devices is None else self.devices

    @property
    def needs_calibration(self) -> bool:
        """Whether a precision among them needs calibration examples."""
        return any(PRECISIONS[name].needs_calibration for name in self.precisions or ())

    def precisions_on(self, device: str) -> Sequence[PrecisionName]:
        """The precisions to measure on a device."""
        if self.precisions is not None:
            return self.precisions
        slow = precision_caveat("bf16", device, fused=True) is not None
        return ("fp32",) if slow else ("fp32", "bf16")


@contextmanager
def fixed_threads(count: int) -> Iterator[None]:
    """Set torch's number of CPU threads, and restore it afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
