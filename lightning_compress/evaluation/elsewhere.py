"""Models that are ready to run in a process of their own."""

import gc
import itertools
from abc import ABC, abstractmethod
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from lightning_compress.evaluation.examples import Batch
from lightning_compress.evaluation.latency import seconds_of
from lightning_compress.evaluation.worker import Worker
from lightning_compress.export.program import Program


class Served(ABC):
    """What lives in the process: its batches are arrays by name, and numbers once they are loaded.

    Args:
        program: runs loaded batches.
    """

    def __init__(self, program: Program) -> None:
        self._program = program
        self._loaded: dict[int, Any] = {}
        self._numbers = itertools.count()
        gc.disable()  # a collection would be charged to a run

    def load(self, batch: dict[str, Any]) -> int:
        """Keep a batch; gives its number."""
        tensors = {name: torch.from_numpy(value) for name, value in batch.items()}
        number = next(self._numbers)
        self._loaded[number] = self._program.load(tensors)
        return number

    def run(self, number: int) -> Any:
        """Run the model on a batch, which is let go of: the logits."""
        return self._program(self._loaded.pop(number)).float().cpu().numpy()

    def seconds(self, number: int) -> float:
        """How long a run takes."""
        return seconds_of(lambda: self._program(self._loaded[number]))

    @abstractmethod
    def size_bytes(self) -> int:
        """Bytes on disk."""

    @abstractmethod
    def peak_memory_bytes(self, number: int) -> int | None:
        """Bytes of weights and activations, if they can be told."""


class PreparedElsewhere:
    """A model that is ready to run in a process of its own.

    All methods end with a WorkerError if that has died.

    Args:
        worker: the process, around a :class:`Served`.

    Attributes:
        resources: what it holds: the process and whatever that needs.
    """

    resources: ExitStack

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def load(self, batch: Batch) -> int:
        """Send a batch; gives its number there."""
        plain = {name: value.numpy() for name, value in batch.items() if name != "labels"}
        number: int = self._worker.call("load", plain)
        return number

    def __call__(self, loaded: int) -> Tensor:
        """Run it: the logits. The batch is let go of."""
        return torch.from_numpy(self._worker.call("run", loaded))

    def seconds(self, loaded: int) -> float:
        """How long a run takes, by the clock there."""
        taken: float = self._worker.call("seconds", loaded)
        return taken

    def size_bytes(self) -> int:
        """Bytes on disk."""
        size: int = self._worker.call("size_bytes")
        return size

    def peak_memory_bytes(self, loaded: int) -> int | None:
        """Bytes of weights and activations, as they are told there."""
        found: int | None = self._worker.call("peak_memory_bytes", loaded)
        return found

    def close(self) -> None:
        """End the process and let go of what it needed."""
        self.resources.close()
