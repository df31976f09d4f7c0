"""Runtimes that a model is exported to, each model in a process of its own."""

import gc
import importlib.util
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_compress.errors import InputError
from lightning_compress.evaluation.examples import Batch
from lightning_compress.evaluation.runtimes import Prepared, UnavailableError
from lightning_compress.evaluation.worker import (
    Worker,
    WorkerError,
    reset_peak,
    resident_bytes,
    seconds_of,
)
from lightning_compress.export.formats import FORMATS, Choices, FormatName
from lightning_compress.export.tracing import input_names
from lightning_compress.models.saving import load_compressed, save_compressed
from lightning_compress.quantization.precisions import in_precision

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_WRITING = "export"


class ExportedRuntime:
    """A runtime for the CPU that runs a file.

    A process writes the file and ends; another opens it, runs it and times itself, so that what
    crashes or hangs takes nothing else along. It keeps still while others are timed.

    Args:
        name: the report's.
        format: what it runs.
        calibration: training examples, for precisions that need some.
        most_examples: of a batch.
        limit: seconds that writing the file, and each run of it, may take.
    """

    def __init__(
        self,
        name: str,
        format: FormatName,
        *,
        calibration: Sequence[Batch],
        most_examples: int,
        limit: float,
    ) -> None:
        self.name = name
        self._format = format
        self._calibration, self._most_examples = calibration, most_examples
        self._limit = limit

    def devices(self) -> Sequence[str]:
        """The CPU."""
        return ["cpu"]

    def prepare(
        self, model: "PreTrainedModel", precision: str, device: str, trials: Sequence[Batch]
    ) -> Prepared:
        """Export the model and open it.

        Raises:
            UnavailableError: a package is missing, there is no such form, or it does not run.
        """
        chosen = FORMATS[self._format]
        missing = [name for name in chosen.modules if importlib.util.find_spec(name) is None]
        if missing:
            raise UnavailableError(
                f"{self.name} is not here: pip install 'lightning-compress[{chosen.extra}]'"
            )
        if precision not in chosen.precisions:
            raise UnavailableError(f"{self.name} has no {precision}")
        folder = Path(tempfile.mkdtemp(prefix="lightning-compress-"))
        try:
            prepared = self._prepared(model, precision, folder)
            for batch in trials:
                prepared(prepared.load(batch))
        except (WorkerError, InputError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise UnavailableError(f"{self.name} in {precision}: {error}") from error
        return prepared

    def _prepared(self, model: "PreTrainedModel", precision: str, folder: Path) -> "PreparedFile":
        save_compressed(model, folder / "model")
        choices = Choices(precision, self._calibration, most_examples=self._most_examples)
        (folder / _WRITING).mkdir()
        writer = Worker(_Writer, limit=self._limit)
        try:
            names = writer.call("write", folder, self._format, choices)
        finally:
            writer.close()
        threads = torch.get_num_threads()
        return PreparedFile(folder, self._format, names, precision, threads, limit=self._limit)


class _Writer:
    """What writes the file."""

    def write(self, folder: Path, format: FormatName, choices: Choices) -> list[str]:
        """Export the saved model; gives the names of its inputs."""
        chosen = FORMATS[format]
        calibration = [dict(batch) for batch in choices.calibration]
        loaded = load_compressed(folder / "model")
        model = in_precision(loaded, chosen.source(choices), "cpu", calibration).eval()
        chosen.write(model, folder / _WRITING, choices)
        return input_names(model)


class PreparedFile:
    """An exported model that is open in a process of its own.

    Args:
        folder: where it lies; deleted in the end.
        format: what it is.
        names: of its inputs.
        precision: to compute in.
        threads: to compute with.
        limit: seconds that a run may take.

    Raises:
        WorkerError: it could not be opened, or later, whenever it is run, it crashed.
    """

    def __init__(
        self,
        folder: Path,
        format: FormatName,
        names: Sequence[str],
        precision: str,
        threads: int,
        *,
        limit: float,
    ) -> None:
        self._folder = folder
        written = [file for file in (folder / _WRITING).rglob("*") if file.is_file()]
        self._size = sum(file.stat().st_size for file in written)
        self._worker = Worker(
            _Opened, folder / _WRITING, format, list(names), precision, threads, limit=limit
        )

    def load(self, batch: Batch) -> int:
        """Send a batch; gives its number there."""
        plain = {name: value.numpy() for name, value in batch.items() if name != "labels"}
        number: int = self._worker.call("load", plain)
        return number

    def __call__(self, loaded: int) -> Tensor:
        """Run it: the logits."""
        return torch.from_numpy(self._worker.call("run", loaded))

    def seconds(self, loaded: int) -> float:
        """How long a run takes, by the clock there."""
        taken: float = self._worker.call("seconds", loaded)
        return taken

    def size_bytes(self) -> int:
        """Bytes of the exported files."""
        return self._size

    def peak_memory_bytes(self, loaded: int) -> int | None:
        """What its process holds at most, beyond what it held before the model was opened."""
        found: int | None = self._worker.call("peak_memory_bytes", loaded)
        return found

    def close(self) -> None:
        """End the process and delete the file."""
        self._worker.close()
        shutil.rmtree(self._folder, ignore_errors=True)


class _Opened:
    """What lives in the process."""

    def __init__(
        self, folder: Path, format: FormatName, names: list[str], precision: str, threads: int
    ) -> None:
        torch.set_num_threads(threads)
        self._before = resident_bytes("VmRSS")
        self._program = FORMATS[format].open(folder, names, precision, threads)
        self._loaded: list[Any] = []
        gc.disable()  # a collection would be charged to a run

    def load(self, batch: dict[str, Any]) -> int:
        tensors = {name: torch.from_numpy(value) for name, value in batch.items()}
        self._loaded.append(self._program.load(tensors))
        return len(self._loaded) - 1

    def run(self, number: int) -> Any:
        return self._program(self._loaded[number]).numpy()

    def seconds(self, number: int) -> float:
        return seconds_of(lambda: self._program(self._loaded[number]))

    def peak_memory_bytes(self, number: int) -> int | None:
        reset_peak()
        self._program(self._loaded[number])
        most = resident_bytes("VmHWM")
        return None if most is None or self._before is None else most - self._before


class TensorRtRuntime:
    """TensorRT, which runs on NVIDIA's GPUs only."""

    name = "tensorrt"

    def devices(self) -> Sequence[str]:
        """Where a row says why it is empty: the GPUs, or else the CPU."""
        return [f"cuda:{number}" for number in range(torch.cuda.device_count())] or ["cpu"]

    def prepare(
        self, model: "PreTrainedModel", precision: str, device: str, trials: Sequence[Batch]
    ) -> Prepared:
        """Say what to do instead.

        Raises:
            UnavailableError: always.
        """
        raise UnavailableError(
            "TensorRT is not measured here: lightning-compress export --format tensorrt --dry-run "
            "writes what builds its engine, and the command"
        )
