"""PyTorch with ``torch.compile``, each model in a process of its own.

Source: Ansel et al., "PyTorch 2: Faster Machine Learning Through Dynamic Python Bytecode
Transformation and Graph Compilation", 2024, https://doi.org/10.1145/3620665.3640366.
"""

import pickle
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lightning_compress.atomic import scratch_folder
from lightning_compress.evaluation.runtimes.eager import TorchModel, torch_devices
from lightning_compress.evaluation.runtimes.runtime import (
    PreparedModel,
    Runtime,
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
from lightning_compress.quantization.quantize import in_precision
from lightning_compress.types import Batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class CompileRuntime(Runtime):
    """PyTorch with ``torch.compile``, compiled once for inputs of all shapes."""

    name = "compile"
    in_subprocess = True

    def devices(self) -> Sequence[str]:
        """Every device that torch sees."""
        return torch_devices()

    def prepare(
        self, model: "PreTrainedModel", precision: str, device: str, warmup_batches: Sequence[Batch]
    ) -> PreparedModel:
        """Compile the model.

        Raises:
            UnavailableError: as for :meth:`Runtime.prepare`.
        """
        limit, threads = TimeLimit(self.options.timeout_s), torch.get_num_threads()
        warmup = [arrays_of(batch) for batch in warmup_batches]
        arguments = (precision, device, self.options.calibration_batches, threads, warmup)
        try:
            with scratch_folder() as folder:
                worker = Worker(_Compiled, _saved(model, folder), *arguments, limit=limit)
        except WorkerError as error:
            raise UnavailableError(f"torch.compile in {precision} failed: {error}") from error
        prepared = SubprocessModel(worker)
        prepared.resources = ExitStack()
        prepared.resources.callback(worker.close)
        return prepared


def _saved(model: "PreTrainedModel", folder: Path) -> Path:
    """Pickle the model to a file, whatever its class."""
    path = folder / "model.pt"
    try:
        torch.save(model, path)
    except (pickle.PicklingError, AttributeError, TypeError, RuntimeError, OSError) as error:
        # It cannot be pickled, or the disk is full.
        raise UnavailableError(f"the model cannot be sent to another process: {error}") from error
    return path


class _Compiled(WorkerSide):
    """The process that compiles and runs the model."""

    def __init__(
        self,
        path: Path,
        precision: str,
        device: str,
        calibration_batches: Sequence[Batch],
        threads: int,
        warmup_batches: Sequence[dict[str, Any]],
    ) -> None:
        # Private options: without them a batch of size 1, and one whose size equals its length,
        # are each compiled separately.
        from torch.fx.experimental import _config as symbolic_shapes

        torch.set_num_threads(threads)
        symbolic_shapes.backed_size_oblivious = True
        symbolic_shapes.use_duck_shape = False
        # The compiler's warnings are about its own code, or how to tune it.
        warnings.simplefilter("ignore")
        loaded = torch.load(path, map_location="cpu", weights_only=False)  # written by _saved
        model = in_precision(loaded, precision, device, calibration_batches).eval()
        # dynamic: one compilation for all lengths; real examples have many.
        self._compiled = TorchModel(model, torch.compile(model, dynamic=True))
        super().__init__(self._compiled, warmup_batches)

    def size_bytes(self) -> int:
        return self._compiled.size_bytes()

    def peak_memory_bytes(self, number: int) -> int | None:
        return self._compiled.peak_memory_bytes(self._loaded[number])
