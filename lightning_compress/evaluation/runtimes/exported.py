"""Runtimes that a model is exported to, each model in a process of its own."""

from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch

from lightning_compress.errors import InputError
from lightning_compress.evaluation.examples import Batch
from lightning_compress.evaluation.footprint import reset_peak, resident_bytes
from lightning_compress.evaluation.runtimes.runtime import Prepared, UnavailableError
from lightning_compress.evaluation.runtimes.subprocess_worker import (
    PreparedElsewhere,
    Served,
    Worker,
    WorkerError,
)
from lightning_compress.export import tensorrt
from lightning_compress.export.formats import (
    FORMATS,
    Choices,
    FormatName,
    missing_packages,
    source_of,
)
from lightning_compress.export.tracing import input_names
from lightning_compress.saving import load_compressed, save_compressed

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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
        missing = missing_packages(chosen)
        if missing is not None:
            raise UnavailableError(f"{self.name} needs {missing}")
        if precision not in chosen.precisions:
            raise UnavailableError(f"{self.name} has no {precision}")
        with ExitStack() as resources:
            try:
                prepared = self._prepared(model, precision, resources)
                for batch in trials:
                    prepared(prepared.load(batch))
            except (WorkerError, InputError) as error:
                raise UnavailableError(f"{self.name} in {precision}: {error}") from error
            prepared.resources = resources.pop_all()
        return prepared

    def _prepared(
        self, model: "PreTrainedModel", precision: str, resources: ExitStack
    ) -> PreparedElsewhere:
        folder = Path(resources.enter_context(TemporaryDirectory(prefix="lightning-compress-")))
        save_compressed(model, folder / "model")
        choices = Choices(precision, self._calibration, most_examples=self._most_examples)
        written = folder / "export"
        written.mkdir()
        with closing(Worker(_Writer, limit=self._limit)) as writer:
            names = writer.call("write", folder / "model", written, self._format, choices)
        arguments = (written, self._format, names, precision, torch.get_num_threads())
        opened = Worker(_Opened, *arguments, limit=self._limit)
        return PreparedElsewhere(resources.enter_context(closing(opened)))


class _Writer:
    """What writes the file."""

    def write(self, saved: Path, folder: Path, format: FormatName, choices: Choices) -> list[str]:
        """Export a saved model; gives the names of its inputs."""
        chosen = FORMATS[format]
        model = source_of(load_compressed(saved), chosen, choices)
        chosen.write(model, folder, choices)
        return input_names(model)


class _Opened(Served):
    """What lives in the process that runs the file."""

    def __init__(
        self, folder: Path, format: FormatName, names: list[str], precision: str, threads: int
    ) -> None:
        torch.set_num_threads(threads)
        self._folder, self._before = folder, resident_bytes("VmRSS")
        super().__init__(FORMATS[format].open(folder, names, precision, threads))

    def size_bytes(self) -> int:
        return sum(file.stat().st_size for file in self._folder.rglob("*") if file.is_file())

    def peak_memory_bytes(self, number: int) -> int | None:
        """What its process holds at most, beyond what it held before the model was opened.

        Unknown of what a GPU holds.
        """
        if isinstance(self._program, tensorrt.TensorRtProgram):
            return None
        reset_peak()
        self._program(self._loaded[number])
        most = resident_bytes("VmHWM")
        return None if most is None or self._before is None else most - self._before


class TensorRtRuntime(ExportedRuntime):
    """TensorRT, which runs on NVIDIA's GPUs only; engines are built for the first one."""

    def devices(self) -> Sequence[str]:
        """The first GPU; without one the CPU, whose row says so."""
        return [tensorrt.DEVICE if torch.cuda.is_available() else "cpu"]

    def prepare(
        self, model: "PreTrainedModel", precision: str, device: str, trials: Sequence[Batch]
    ) -> Prepared:
        """Build the engine and open it.

        Raises:
            UnavailableError: there is no GPU or no TensorRT, no such form, or it does not run.
        """
        missing = tensorrt.missing_part()
        if missing is not None:
            raise UnavailableError(missing)
        return super().prepare(model, precision, device, trials)
