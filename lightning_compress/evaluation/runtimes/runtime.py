"""What a runtime is to a benchmark: it makes a model ready to run in a precision on a device."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from lightning_compress.types import Batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class UnavailableError(RuntimeError):
    """A runtime cannot run a model here; the message is the reason that the report gives."""


class PreparedModel(Protocol):
    """A model ready to run in one runtime, precision and device."""

    def load(self, batch: Batch) -> Any:
        """Bring a batch where and into the form that the runtime wants it; never timed."""

    def __call__(self, loaded: Any) -> Tensor:
        """Run a loaded batch; returns when the logits are there."""

    def seconds(self, loaded: Any) -> float:
        """How long a run takes."""

    def size_bytes(self) -> int:
        """Bytes on disk of what this runtime runs."""

    def peak_memory_bytes(self, loaded: Any) -> int | None:
        """Bytes of the weights and of all that a run holds at one time; None if unknown."""

    def close(self) -> None:
        """Let go of what it holds."""


class Runtime(Protocol):
    """A way to run a model."""

    name: str

    def devices(self) -> Sequence[str]:
        """Devices of this machine that it runs on, such as ``cpu`` or ``cuda:0``."""

    def prepare(
        self, model: "PreTrainedModel", precision: str, device: str, warmup_batches: Sequence[Batch]
    ) -> PreparedModel:
        """Prepare a copy of a model and run each of ``warmup_batches`` once.

        What cannot run fails here. The model itself is not changed.

        Raises:
            UnavailableError: it does not work on this machine.
        """
