"""The choices of a benchmark."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from lightning_compress.errors import InputError
from lightning_compress.evaluation.host import bf16_caveat
from lightning_compress.evaluation.runtimes.eager import torch_devices
from lightning_compress.evaluation.runtimes.table import RuntimeName, runtimes_here
from lightning_compress.quantization.precisions import PRECISIONS, Precision


@dataclass(frozen=True, kw_only=True)
class BenchmarkSettings:
    """What is measured and for how long.

    Args:
        runtimes: what runs the models: ``eager`` and ``compile`` in PyTorch; ``onnxruntime``,
            ``openvino`` and ``executorch`` what it is exported to; ``tensorrt`` says what to do.
            None for all whose packages are installed.
        precisions: what the models are cast or quantized to; None for fp32 and, on devices that
            have instructions for it, bf16. A quantized model is measured as it is.
        devices: such as ``cpu`` or ``cuda:0``; None for every device there is.
        batch_sizes: of the batches for throughput; the largest is that of the batches for quality
            and of the speedup.
        latency_examples: how many real examples are timed alone.
        seconds: how long each row is timed for latency, and again for throughput.
        threads: numbers of threads on the CPU, 0 for as many as torch is set to. All figures are
            with the first, rates with each.
        timeout_s: seconds that compiling or exporting a model, and each run there, may take.

    Raises:
        InputError: a choice is out of range, or the machine has no such device.
    """

    runtimes: Sequence[RuntimeName] | None = ("eager", "compile")
    precisions: Sequence[Precision] | None = None
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
        for precision in self.precisions or ():
            if precision not in PRECISIONS:
                raise InputError(
                    f"precisions: there is no {precision!r}; there are {', '.join(PRECISIONS)}"
                )
        if self.latency_examples < 1:
            raise InputError(f"latency_examples must be at least 1, not {self.latency_examples}")
        for name, least in (("batch_sizes", 1), ("threads", 0)):
            if min(getattr(self, name)) < least:
                raise InputError(f"{name} must be at least {least}, not {min(getattr(self, name))}")
        for name in ("seconds", "timeout_s"):
            if getattr(self, name) <= 0:
                raise InputError(f"{name} must be positive, not {getattr(self, name)}")
        there = torch_devices()
        for device in self.devices or ():
            if device not in there:
                raise InputError(f"devices: there is no {device} here, only {', '.join(there)}")

    @property
    def batch_size(self) -> int:
        """Of the batches for quality and for the speedup."""
        return max(self.batch_sizes)

    def thread_counts(self) -> list[int]:
        """The numbers of threads to measure with on the CPU, each once, as torch is set now."""
        return list(dict.fromkeys(count or torch.get_num_threads() for count in self.threads))

    def runtimes_here(self) -> Sequence[RuntimeName]:
        """The runtimes to measure."""
        return runtimes_here() if self.runtimes is None else self.runtimes

    def devices_here(self) -> Sequence[str]:
        """The devices to measure on."""
        return torch_devices() if self.devices is None else self.devices

    def precisions_on(self, device: str) -> Sequence[Precision]:
        """The precisions to measure on a device."""
        if self.precisions is not None:
            return self.precisions
        return ("fp32", "bf16") if bf16_caveat(device) is None else ("fp32",)


@contextmanager
def fixed_threads(count: int) -> Iterator[None]:
    """Let torch compute with ``count`` threads on the CPU meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
