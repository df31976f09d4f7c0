"""PyTorch without compilation."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lightning_compress.errors import InputError, first_line
from lightning_compress.evaluation.footprint import module_bytes, peak_allocated, saved_size
from lightning_compress.evaluation.latency import seconds_of
from lightning_compress.evaluation.runtimes.runtime import (
    PreparedModel,
    Runtime,
    RuntimeOptions,
    TimeLimit,
    UnavailableError,
)
from lightning_compress.models.forward import device_of, inputs_for, logits_by, synchronize
from lightning_compress.quantization.precisions import own_precision
from lightning_compress.quantization.quantize import in_precision
from lightning_compress.types import Batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class TorchModel:
    """A torch module on a device.

    Args:
        model: the module whose inputs a batch is reduced to.
        call: the same module, or the compiled one.
    """

    def __init__(self, model: "PreTrainedModel", call: Callable[..., object]) -> None:
        self.model = model
        self.device = device_of(model)
        self._logits = logits_by(model, call)

    def load(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Select the model's inputs and move them to its device."""
        return inputs_for(self.model, batch)

    def __call__(self, loaded: dict[str, Tensor]) -> Tensor:
        """Run a batch and wait for the device."""
        logits = self._logits(**loaded)
        synchronize(self.device)
        return logits

    def seconds(self, loaded: dict[str, Tensor]) -> float:
        """Run a batch and return the seconds it took."""
        return seconds_of(lambda: self(loaded))

    def size_bytes(self) -> int:
        """Bytes of the model saved in this precision."""
        return saved_size(self.model)

    def peak_memory_bytes(self, loaded: dict[str, Tensor]) -> int | None:
        """Peak bytes of weights and activations."""
        activations = peak_allocated(lambda: self(loaded), self.device)
        return None if activations is None else module_bytes(self.model) + activations

    def close(self) -> None:
        """Nothing to release."""


class EagerRuntime(Runtime):
    """PyTorch without compilation; each copy of a model in a precision and device is made once."""

    name = "eager"
    fused = False

    def __init__(self, options: RuntimeOptions) -> None:
        super().__init__(options)
        self._copies: dict[tuple[int, str, str], tuple[nn.Module, PreTrainedModel]] = {}

    def devices(self) -> Sequence[str]:
        """Every device that torch sees."""
        return torch_devices()

    def prepare(
        self, model: "PreTrainedModel", precision: str, device: str, warmup_batches: Sequence[Batch]
    ) -> PreparedModel:
        """Copy the model to the precision and the device.

        It runs in this process, so that the time limit is checked between steps only.

        Raises:
            UnavailableError: as for :meth:`Runtime.prepare`.
        """
        limit = TimeLimit(self.options.timeout_s)
        try:
            copy = self._copy(model, precision, device)
            prepared = TorchModel(copy, copy)
            for batch in warmup_batches:
                limit.check()
                prepared(prepared.load(batch))
        except (InputError, RuntimeError, TypeError, TimeoutError) as error:
            raise UnavailableError(f"does not run in {precision}: {first_line(error)}") from error
        return prepared

    def _copy(self, model: "PreTrainedModel", precision: str, device: str) -> "PreTrainedModel":
        """The model in a precision on a device; the model itself if it is in both already."""
        dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()}
        own = own_precision(model) or ("fp32" if dtypes == {torch.float32} else None)
        if own == precision and device_of(model) == torch.device(device):
            return model
        key = (id(model), precision, device)
        if key not in self._copies:
            copy = in_precision(model, precision, device, self.options.calibration_batches)
            # Keeps a reference to the model, so that its id is not given to another one.
            self._copies[key] = (model, copy)
        return self._copies[key][1]


def torch_devices() -> list[str]:
    """Every device that torch sees: the CPU, CUDA devices by number, Apple's GPU."""
    devices = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        devices.append("mps")
    return devices
