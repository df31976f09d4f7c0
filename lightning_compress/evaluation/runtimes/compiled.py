"""PyTorch with ``torch.compile``, each model in a process of its own."""

import pickle
import warnings
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch

from lightning_compress.evaluation.runtimes.eager import TorchModel, torch_devices
from lightning_compress.evaluation.runtimes.runtime import PreparedModel, UnavailableError
from lightning_compress.evaluation.runtimes.subprocess_worker import (
    SubprocessModel,
    Worker,
    WorkerError,
    WorkerSide,
)
from lightning_compress.quantization.precisions import in_precision
from lightning_compress.types import Batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class CompileRuntime:
    """PyTorch with ``torch.compile``, for inputs of all shapes.

    Args:
        calibration: training examples, for precisions that need some.
        timeout_s: seconds that compiling for a batch, and each run, may take.
    """

    name = "compile"

    def __init__(self, *, calibration: Sequence[Batch], timeout_s: float) -> None:
        self._calibration, self._timeout_s = calibration, timeout_s

    def devices(self) -> Sequence[str]:
        """Every device that torch sees."""
        return torch_devices()

    def prepare(
        self, model: "PreTrainedModel", precision: str, device: str, warmup_batches: Sequence[Batch]
    ) -> PreparedModel:
        """Compile the model.

        Raises:
            UnavailableError: there is no compiler, it cannot compile the model, or the device lacks
                the precision or the memory.
        """
        with ExitStack() as resources:
            options = (precision, device, self._calibration, torch.get_num_threads())
            try:
                with TemporaryDirectory(prefix="lightning-compress-") as folder:
                    path = _saved(model, Path(folder))
                    worker = Worker(_Compiled, path, *options, timeout_s=self._timeout_s)
                prepared = SubprocessModel(resources.enter_context(closing(worker)))
                for batch in warmup_batches:
                    prepared(prepared.load(batch))
            except WorkerError as error:
                raise UnavailableError(f"torch.compile in {precision} failed: {error}") from error
            prepared.resources = resources.pop_all()
        return prepared


def _saved(model: "PreTrainedModel", folder: Path) -> Path:
    """A file with the model as it is, whatever its class."""
    path = folder / "model.pt"
    try:
        torch.save(model, path)
    except (pickle.PicklingError, AttributeError, TypeError, RuntimeError, OSError) as error:
        # What cannot be pickled, or a full disk.
        raise UnavailableError(f"a process of its own cannot be sent the model: {error}") from error
    return path


class _Compiled(WorkerSide):
    """What lives in the process."""

    def __init__(
        self,
        path: Path,
        precision: str,
        device: str,
        calibration: Sequence[Batch],
        threads: int,
    ) -> None:
        # Private, and worth it: else a batch of one, or one as long as it is large, is compiled
        # apart, which takes as long again.
        from torch.fx.experimental import _config as symbolic_shapes

        torch.set_num_threads(threads)
        symbolic_shapes.backed_size_oblivious = True
        symbolic_shapes.use_duck_shape = False
        # What the compiler warns of concerns its own code or how to tune it.
        warnings.simplefilter("ignore")
        loaded = torch.load(path, map_location="cpu", weights_only=False)  # it is our own
        model = in_precision(loaded, precision, device, calibration).eval()
        # dynamic: one compilation for all lengths; real examples have many.
        self._compiled = TorchModel(model, torch.compile(model, dynamic=True))
        super().__init__(self._compiled)

    def size_bytes(self) -> int:
        return self._compiled.size_bytes()

    def peak_memory_bytes(self, number: int) -> int | None:
        return self._compiled.peak_memory_bytes(self._loaded[number])
