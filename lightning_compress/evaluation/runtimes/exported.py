"""Runtimes that execute exported models, each model in a process of its own."""

from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lightning_compress.atomic import scratch_folder
from lightning_compress.errors import InputError
from lightning_compress.evaluation.footprint import reset_peak, resident_bytes
from lightning_compress.evaluation.runtimes.eager import torch_devices
from lightning_compress.evaluation.runtimes.runtime import (
    PreparedModel,
    Runtime,
    RuntimeOptions,
    TimeLimit,
    UnavailableError,
)
from lightning_compress.evaluation.runtimes.subprocess_worker import (
    SubprocessModel,
    Worker,
    WorkerError,
    WorkerSide,
    arrays_of,
)
from lightning_compress.export.format import ExportOptions, Format
from lightning_compress.export.tracing import input_names
from lightning_compress.saving import load_compressed, save_compressed
from lightning_compress.types import Batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class ExportedRuntime(Runtime):
    """The runtime of an export format.

    One process writes the exported model and ends; another loads it, runs it and times itself, so
    that a crash or a hang affects this model only. It is idle while others are timed.

    Args:
        format: the format that models are exported to.
        options: of the runtime.
    """

    in_subprocess = True

    def __init__(self, format: Format, options: RuntimeOptions) -> None:
        super().__init__(options)
        self.name, self.format = format.runtime, format

    def missing(self) -> str | None:
        """What the format needs and is not installed."""
        return self.format.missing(ExportOptions())

    def devices(self) -> Sequence[str]:
        """The format's device; the CPU where that is missing, for a row with the reason."""
        return [self.format.device if self.format.device in torch_devices() else "cpu"]

    def prepare(
        self, model: "PreTrainedModel", precision: str, device: str, warmup_batches: Sequence[Batch]
    ) -> PreparedModel:
        """Export the model, load it and run the warm-up batches.

        Raises:
            UnavailableError: as for :meth:`Runtime.prepare`.
        """
        missing = self.missing()
        if missing is not None:
            raise UnavailableError(f"{self.name} needs {missing}")
        if precision not in self.format.precisions:
            raise UnavailableError(f"{self.name} has no {precision}")
        with ExitStack() as resources:
            try:
                prepared = self._exported(model, precision, warmup_batches, resources)
            except (WorkerError, InputError) as error:
                raise UnavailableError(f"{self.name} in {precision}: {error}") from error
            prepared.resources = resources.pop_all()
        return prepared

    def _exported(
        self,
        model: "PreTrainedModel",
        precision: str,
        warmup_batches: Sequence[Batch],
        resources: ExitStack,
    ) -> SubprocessModel:
        limit = TimeLimit(self.options.timeout_s)
        folder = resources.enter_context(scratch_folder())
        save_compressed(model, folder / "model")
        written = folder / "export"
        written.mkdir()
        options = ExportOptions(
            precision,
            self.options.calibration_batches,
            max_batch_size=self.options.max_batch_size,
        )
        with closing(Worker(_Writer, self.format, limit=limit)) as writer:
            names = writer.call("write", folder / "model", written, options, limit=limit)
        warmup = [arrays_of(batch) for batch in warmup_batches]
        arguments = (written, names, precision, torch.get_num_threads(), warmup)
        loaded = Worker(_Loaded, self.format, *arguments, limit=limit)
        return SubprocessModel(resources.enter_context(closing(loaded)))


class _Writer:
    """The process that writes the exported model."""

    def __init__(self, format: Format) -> None:
        self._format = format

    def write(self, saved: Path, folder: Path, options: ExportOptions) -> list[str]:
        """Export a saved model; returns the names of its inputs."""
        model = self._format.source(load_compressed(saved), options)
        self._format.write(model, folder, options)
        return input_names(model)


class _Loaded(WorkerSide):
    """The process that runs the exported model."""

    def __init__(
        self,
        format: Format,
        folder: Path,
        names: list[str],
        precision: str,
        threads: int,
        warmup_batches: Sequence[dict[str, Any]],
    ) -> None:
        torch.set_num_threads(threads)
        self._format, self._folder = format, folder
        self._before = resident_bytes("VmRSS")
        super().__init__(format.open(folder, names, precision, threads), warmup_batches)

    def size_bytes(self) -> int:
        return sum(file.stat().st_size for file in self._folder.rglob("*") if file.is_file())

    def peak_memory_bytes(self, number: int) -> int | None:
        """Peak memory of the process minus its memory before the model was loaded.

        None for a model on a GPU, whose memory is not the process's.
        """
        if self._format.device != "cpu":
            return None
        reset_peak()
        self._program(self._loaded[number])
        most = resident_bytes("VmHWM")
        return None if most is None or self._before is None else most - self._before
