"""Run a model in a process of its own, which may crash or hang without affecting others."""

import gc
import itertools
import multiprocessing
import os
import signal
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection, wait
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from lightning_compress.errors import first_line
from lightning_compress.evaluation.latency import seconds_of
from lightning_compress.evaluation.runtimes.runtime import TimeLimit
from lightning_compress.export.format import Program
from lightning_compress.types import Batch

_SECONDS_TO_EXIT = 1.0


class WorkerError(RuntimeError):
    """A call in another process failed, its process died, or it exceeded its time limit."""


class Worker:
    """An object in a process of its own, whose methods can be called from this one.

    Args:
        build: makes the object in the other process; picklable.
        arguments: of ``build``; picklable.
        limit: when the object has to be built. Each call may take as many seconds in all.

    Raises:
        WorkerError: the object could not be built.
    """

    def __init__(self, build: Callable[..., Any], *arguments: Any, limit: TimeLimit) -> None:
        context = multiprocessing.get_context("spawn")
        self._ours, theirs = context.Pipe()
        self._timeout_s = limit.seconds
        self._process = context.Process(target=_serve, args=(theirs, build, arguments), daemon=True)
        with _no_script():
            self._process.start()
        theirs.close()
        try:
            self._answer(limit)
        except BaseException:
            self.close()
            raise

    def call(self, method: str, *arguments: Any, limit: TimeLimit | None = None) -> Any:
        """Call a method of the object.

        Args:
            method: its name.
            arguments: of the method; picklable.
            limit: when the call has to be done; None: a limit of its own, as long as that of
                building the object.

        Raises:
            WorkerError: the call failed, the process died, or it took too long.
        """
        try:
            self._ours.send((method, arguments))
        except (BrokenPipeError, ConnectionResetError) as error:
            raise WorkerError("its process died") from error
        return self._answer(limit or TimeLimit(self._timeout_s))

    def close(self) -> None:
        """Close the pipe, on which the process exits; kill it if it does not."""
        self._ours.close()
        self._process.join(_SECONDS_TO_EXIT)
        self._process.kill()
        self._process.join()

    def _answer(self, limit: TimeLimit) -> Any:
        try:
            if not self._ours.poll(limit.left):
                self.close()
                raise WorkerError(limit.message)
            ok, found = self._ours.recv()
        except (EOFError, ConnectionResetError) as error:
            self._process.join()
            raise WorkerError(f"its process died, {_ending(self._process.exitcode)}") from error
        if not ok:
            raise WorkerError(found)
        return found


@contextmanager
def _no_script() -> Iterator[None]:
    """Processes started meanwhile do not import the user's script as ``__main__``.

    A script without ``if __name__ == "__main__"`` would otherwise run again in each of them.
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
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a whole terminal; the parent handles it
    threading.Thread(target=_end_with_parent, daemon=True).start()
    for stream in (1, 2):  # libraries print there; errors are sent through the pipe
        os.dup2(silence, stream)
    ok, made = _tried(build, *arguments)
    pipe.send((ok, None if ok else made))
    while ok:
        try:
            method, given = pipe.recv()
        except EOFError:
            return
        pipe.send(_tried(getattr(made, method), *given))


def _end_with_parent() -> None:
    """End this process when the parent's ends, however busy it is and however that was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _tried(call: Callable[..., Any], *arguments: Any) -> tuple[bool, Any]:
    """Whether a call succeeded, and its result or the first line of its error."""
    try:
        return True, call(*arguments)
    except Exception as error:  # noqa: BLE001  # every error is sent to the caller
        return False, first_line(error)


class WorkerSide(ABC):
    """The worker process's side of a :class:`SubprocessModel`.

    Batches arrive as arrays by name; loaded ones are kept and referred to by number.

    Args:
        program: the model that runs loaded batches.
        warmup_batches: run once each, so that the time limit of building includes compilation.
    """

    def __init__(self, program: Program, warmup_batches: Sequence[dict[str, Any]]) -> None:
        self._program = program
        self._loaded: dict[int, Any] = {}
        self._numbers = itertools.count()
        for batch in warmup_batches:
            self.run(self.load(batch))
        gc.disable()  # a collection during a run would count as its time

    def load(self, batch: dict[str, Any]) -> int:
        """Load and keep a batch; returns its number."""
        tensors = {name: torch.from_numpy(value) for name, value in batch.items()}
        number = next(self._numbers)
        self._loaded[number] = self._program.load(tensors)
        return number

    def run(self, number: int) -> Any:
        """Run the model on a batch and drop the batch; returns the logits."""
        return self._program(self._loaded.pop(number)).float().cpu().numpy()

    def seconds(self, number: int) -> float:
        """Run the model on a batch, which is kept; returns the seconds it took."""
        return seconds_of(lambda: self._program(self._loaded[number]))

    @abstractmethod
    def size_bytes(self) -> int:
        """Bytes on disk."""

    @abstractmethod
    def peak_memory_bytes(self, number: int) -> int | None:
        """Peak bytes of weights and activations; None if unknown."""


def arrays_of(batch: Batch) -> dict[str, Any]:
    """A batch as it is sent to a :class:`WorkerSide`: arrays by name, without labels."""
    return {name: value.numpy() for name, value in batch.items() if name != "labels"}


class SubprocessModel:
    """A model ready to run in a process of its own.

    All methods raise a WorkerError if the process has died.

    Args:
        worker: the process, which holds a :class:`WorkerSide`.

    Attributes:
        resources: the process and its files, released by :meth:`close`.
    """

    resources: ExitStack

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def load(self, batch: Batch) -> int:
        """Send a batch; returns its number in the worker process."""
        number: int = self._worker.call("load", arrays_of(batch))
        return number

    def __call__(self, loaded: int) -> Tensor:
        """Run a loaded batch and drop it: the logits."""
        return torch.from_numpy(self._worker.call("run", loaded))

    def seconds(self, loaded: int) -> float:
        """Run a loaded batch; the seconds are measured in the worker process."""
        taken: float = self._worker.call("seconds", loaded)
        return taken

    def size_bytes(self) -> int:
        """Bytes on disk."""
        size: int = self._worker.call("size_bytes")
        return size

    def peak_memory_bytes(self, loaded: int) -> int | None:
        """Peak bytes of weights and activations, measured in the worker process."""
        found: int | None = self._worker.call("peak_memory_bytes", loaded)
        return found

    def close(self) -> None:
        """End the process and remove its files."""
        self.resources.close()
