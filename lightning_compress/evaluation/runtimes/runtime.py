"""The interface of a runtime: prepare a model to run in a precision on a device.

Each runtime is a subclass of :class:`Runtime` in the file that implements it; the table of all
runtimes is :data:`~lightning_compress.evaluation.runtimes.table.RUNTIMES`.
"""

import platform
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch import Tensor

from lightning_compress.quantization.precisions import PRECISIONS, Precision
from lightning_compress.types import Batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def precision_caveat(precision: str, device: str, *, fused: bool) -> str | None:
    """Why a precision may not be faster than fp32; None if no reason is known.

    Args:
        precision: one of ``PRECISIONS``.
        device: such as ``cpu``.
        fused: whether the runtime fuses consecutive operations.
    """
    chosen = PRECISIONS[precision]
    unfused = None if fused else chosen.unfused_caveat
    # Fusing the steps is no remedy on a processor without the instructions.
    return chosen.caveat or _missing_instructions(chosen, device) or unfused


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


class UnavailableError(RuntimeError):
    """A runtime cannot run a model on this machine; the report shows the message as the reason."""


@dataclass(frozen=True)
class RuntimeOptions:
    """What a runtime is built with.

    Args:
        calibration_batches: batches of training examples, for precisions that need calibration.
        max_batch_size: largest batch that will be run.
        timeout_s: seconds that preparing a model, and each later run in another process, may take.
    """

    calibration_batches: Sequence[Batch] = field(default=(), repr=False)
    max_batch_size: int = 32
    timeout_s: float = 900.0


class TimeLimit:
    """The time that several steps may take together, counted from when it is made.

    Args:
        seconds: that they may take.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds left; 0 when the time is over."""
        return max(0.0, self._end - time.monotonic())

    def check(self) -> None:
        """Raise a TimeoutError if the time is over."""
        if not self.left:
            raise TimeoutError(self.message)

    @property
    def message(self) -> str:
        """That the time is over."""
        return f"it took longer than {self.seconds:g} s (timeout_s)"


class PreparedModel(Protocol):
    """A model ready to run in one runtime, precision and device."""

    def load(self, batch: Batch) -> Any:
        """Convert a batch to the runtime's input form, on its device; never timed."""

    def __call__(self, loaded: Any) -> Tensor:
        """Run a loaded batch; the logits are computed when it returns."""

    def seconds(self, loaded: Any) -> float:
        """Run a loaded batch and return the seconds it took."""

    def size_bytes(self) -> int:
        """Bytes on disk of the model in the form that this runtime runs."""

    def peak_memory_bytes(self, loaded: Any) -> int | None:
        """Peak bytes of weights and activations during a run; None if unknown."""

    def close(self) -> None:
        """Release processes and files."""


class Runtime(ABC):
    """A way to run a model.

    Attributes:
        name: the runtime's name in settings and reports.
        in_subprocess: whether each model runs in a process of its own.
        fused: whether consecutive elementwise operations are fused; if not, quantizing activations
            takes a pass over memory for each operation.
    """

    name: str
    in_subprocess: ClassVar[bool] = False
    fused: ClassVar[bool] = True

    def __init__(self, options: RuntimeOptions) -> None:
        self.options = options

    def missing(self) -> str | None:
        """What has to be installed first and how; None if nothing is missing."""
        return None

    @abstractmethod
    def devices(self) -> Sequence[str]:
        """Devices of this machine that it runs on, such as ``cpu`` or ``cuda:0``."""

    @abstractmethod
    def prepare(
        self, model: "PreTrainedModel", precision: str, device: str, warmup_batches: Sequence[Batch]
    ) -> PreparedModel:
        """Prepare a copy of a model and run each of ``warmup_batches`` once.

        The model itself is not changed. All of it together may take ``options.timeout_s`` seconds.

        Raises:
            UnavailableError: a package is missing, the runtime or device does not support the
                precision or the model, or memory or time is exhausted.
        """
