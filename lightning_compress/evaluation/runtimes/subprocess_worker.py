"""Processes of their own for what may take a process down, or never come back.

Models that are ready to run in a process of their own.
"""

import gc
import itertools
import multiprocessing
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from lightning_compress.errors import first_line
from lightning_compress.evaluation.latency import seconds_of
from lightning_compress.export.program import Program
from lightning_compress.types import Batch

_PATIENCE = 5.0  # seconds


class WorkerError(RuntimeError):
    """What ran in a process of its own failed, died or took too long; the message says which."""


class Worker:
    """An object that lives in a process of its own, and its methods.

    Args:
        build: makes the object there, with ``arguments``; it and they can be pickled.
        arguments: for it.
        timeout_s: seconds that building it, or one call, may take.

    Raises:
        WorkerError: the object could not be built.
    """

    def __init__(self, build: Callable[..., Any], *arguments: Any, timeout_s: float) -> None:
        context = multiprocessing.get_context("spawn")
        self._ours, theirs = context.Pipe()
        self._timeout_s = timeout_s
        self._process = context.Process(target=_serve, args=(theirs, build, arguments), daemon=True)
        with _no_script():
            self._process.start()
        theirs.close()
        self._answer()

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the object there.

        Raises:
            WorkerError: it failed, its process died, or it took too long.
        """
        try:
            self._ours.send((method, arguments))
        except (BrokenPipeError, ConnectionResetError) as error:
            raise WorkerError("its process died") from error
        return self._answer()

    def close(self) -> None:
        """End the process: it ends by itself once nobody speaks to it, or else is killed."""
        self._ours.close()
        self._process.join(_PATIENCE)
        self._process.kill()
        self._process.join()

    def _answer(self) -> Any:
        try:
            if not self._ours.poll(self._timeout_s):
                self.close()
                raise WorkerError(f"it took longer than {self._timeout_s:g} s")
            fine, found = self._ours.recv()
        except (EOFError, ConnectionResetError) as error:
            self._process.join()
            raise WorkerError(f"its process died, {_ending(self._process.exitcode)}") from error
        if not fine:
            raise WorkerError(found)
        return found


@contextmanager
def _no_script() -> Iterator[None]:
    """A process that starts meanwhile does not begin with the user's script.

    It would, where that has no ``if __name__ == "__main__"``, train all over again.
    """
    script = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script


def _ending(code: int | None) -> str:
    return f"killed by signal {-code}" if code is not None and code < 0 else f"with status {code}"


def _serve(pipe: Connection, build: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    silence = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # the libraries' chatter; what went wrong is sent
        os.dup2(silence, stream)
    fine, made = _tried(build, *arguments)
    pipe.send((fine, None if fine else made))
    while fine:
        try:
            method, given = pipe.recv()
        except EOFError:
            return
        pipe.send(_tried(getattr(made, method), *given))


def _tried(call: Callable[..., Any], *arguments: Any) -> tuple[bool, Any]:
    """Whether a call went well, and what it gave or what it said."""
    try:
        return True, call(*arguments)
    except Exception as error:  # noqa: BLE001  # whatever it was, it is sent
        return False, first_line(error)


class WorkerSide(ABC):
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


class SubprocessModel:
    """A model that is ready to run in a process of its own.

    All methods end with a WorkerError if that has died.

    Args:
        worker: the process, around a :class:`WorkerSide`.

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
