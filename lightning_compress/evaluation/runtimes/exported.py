"""Runtimes that a model is exported to, each model in a process of its own."""

from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch

from lightning_compress.errors import InputError
from lightning_compress.evaluation.footprint import reset_peak, resident_bytes
from lightning_compress.evaluation.runtimes.runtime import PreparedModel, UnavailableError
from lightning_compress.evaluation.runtimes.subprocess_worker import (
    SubprocessModel,
    Worker,
    WorkerError,
    WorkerSide,
)
from lightning_compress.export import tensorrt
from lightning_compress.export.formats import (
    FORMATS,
    ExportOptions,
    FormatName,
    missing_packages,
    source_of,
)
from lightning_compress.export.tracing import input_names
from lightning_compress.saving import load_compressed, save_compressed
from lightning_compress.types import Batch

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
        max_batch_size: of a batch.
        timeout_s: seconds that writing the file, and each run of it, may take.
    """

    def __init__(
        self,
        name: str,
        format: FormatName,
        *,
        calibration: Sequence[Batch],
        max_batch_size: int,
        timeout_s: float,
    ) -> None:
        self.name = name
        self._format = format
        self._calibration, self._max_batch_size = calibration, max_batch_size
        self._timeout_s = timeout_s

    def devices(self) -> Sequence[str]:
        """The CPU."""
        return ["cpu"]

    def prepare(
        self, model: "PreTrainedModel", precision: str, device: str, warmup_batches: Sequence[Batch]
    ) -> PreparedModel:
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
                for batch in warmup_batches:
                    prepared(prepared.load(batch))
            except (WorkerError, InputError) as error:
                raise UnavailableError(f"{self.name} in {precision}: {error}") from error
            prepared.resources = resources.pop_all()
        return prepared

    def _prepared(
        self, model: "PreTrainedModel", precision: str, resources: ExitStack
    ) -> SubprocessModel:
        folder = Path(resources.enter_context(TemporaryDirectory(prefix="lightning-compress-")))
        save_compressed(model, folder / "model")
        options = ExportOptions(precision, self._calibration, max_batch_size=self._max_batch_size)
        written = folder / "export"
        written.mkdir()
        with closing(Worker(_Writer, timeout_s=self._timeout_s)) as writer:
            names = writer.call("write", folder / "model", written, self._format, options)
        arguments = (written, self._format, names, precision, torch.get_num_threads())
        opened = Worker(_Opened, *arguments, timeout_s=self._timeout_s)
        return SubprocessModel(resources.enter_context(closing(opened)))


class _Writer:
    """What writes the file."""

    def write(
        self, saved: Path, folder: Path, format: FormatName, options: ExportOptions
    ) -> list[str]:
        """Export a saved model; gives the names of its inputs."""
        chosen = FORMATS[format]
        model = source_of(load_compressed(saved), chosen, options)
        chosen.write(model, folder, options)
        return input_names(model)


class _Opened(WorkerSide):
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
        self, model: "PreTrainedModel", precision: str, device: str, warmup_batches: Sequence[Batch]
    ) -> PreparedModel:
        """Build the engine and open it.

        Raises:
            UnavailableError: there is no GPU or no TensorRT, no such form, or it does not run.
        """
        missing = tensorrt.missing_part()
        if missing is not None:
            raise UnavailableError(missing)
        return super().prepare(model, precision, device, warmup_batches)
