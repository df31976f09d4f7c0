"""The interface of an export format, its options, and the interface of an exported program.

Each format is a subclass of :class:`Format` in the file that implements it; the table of all
formats is in :mod:`~lightning_compress.export.formats`.
"""

import importlib.util
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from torch import Tensor

from lightning_compress.errors import InputError
from lightning_compress.quantization.quantize import in_precision
from lightning_compress.types import Batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class ExportOptions:
    """How a model is exported.

    Args:
        precision: precision of the exported model, such as ``fp32`` or ``int8-dynamic``.
        calibration_batches: batches of training examples, for ``int8-static``.
        nncf: quantize with NNCF instead of this package; OpenVINO with ``int8-static`` only.
        max_batch_size: largest batch, for formats that plan memory for it.
        dry_run: write the ONNX file and the build command, but no engine; TensorRT only.
        signed: int8 instead of uint8 activations, whose kernels are the fast ones on ARM; ONNX with
            ``int8-dynamic`` or ``int8-static`` only.
    """

    precision: str = "fp32"
    calibration_batches: Sequence[Batch] = field(default=(), repr=False)
    nncf: bool = False
    max_batch_size: int = 32
    dry_run: bool = False
    signed: bool = False


OPTIONAL = ("nncf", "dry_run", "signed")
"""Options that only formats which name them in ``own_options`` accept."""


class Program(Protocol):
    """An exported model, loaded into its runtime."""

    def load(self, batch: Mapping[str, Tensor]) -> Any:
        """Convert a batch, ``input_ids`` [B, S] and the rest, to the runtime's input form."""

    def __call__(self, loaded: Any) -> Tensor:
        """Run the model: logits [B, C] or [B, S, V] on the CPU, computed when it returns."""


class Format(ABC):
    """A file format and the runtime that executes it.

    Attributes:
        name: the format's name, as in ``--format``.
        runtime: the runtime's name, as in ``--measure.runtimes`` and in reports.
        packages: importable packages that writing and running need.
        extra: the extra of this package that installs them.
        precisions: supported precisions.
        symmetric: whether zero points of static activation quantization must be 0.
        recalibrates: whether static activation scales are computed anew for models that are
            already quantized.
        saturates: whether sums of int8 products can overflow on x86 CPUs without VNNI, for weights
            in full range.
        own_options: the options among :data:`OPTIONAL` that the format accepts.
        device: where the runtime runs, ``cpu`` or such as ``cuda:0``.
    """

    name: ClassVar[str]
    runtime: ClassVar[str]
    packages: ClassVar[Sequence[str]] = ()
    extra: ClassVar[str | None] = None
    precisions: ClassVar[Sequence[str]]
    symmetric: ClassVar[bool] = False
    recalibrates: ClassVar[bool] = False
    saturates: ClassVar[bool] = False
    own_options: ClassVar[Sequence[str]] = ()
    device: ClassVar[str] = "cpu"

    def missing(self, options: ExportOptions) -> str | None:
        """What has to be installed first and how; None if nothing is missing."""
        missing = [name for name in self.packages if importlib.util.find_spec(name) is None]
        if not missing:
            return None
        return f"{' and '.join(missing)}: pip install 'lightning-compress[{self.extra}]'"

    def check(self, options: ExportOptions) -> None:
        """Check the options before anything is written.

        Raises:
            InputError: the format does not support one of them.
        """
        if options.precision not in self.precisions:
            raise InputError(
                f"{self.name} has no {options.precision}: choose from {', '.join(self.precisions)}"
            )
        for name in OPTIONAL:
            if getattr(options, name) and name not in self.own_options:
                raise InputError(f"--format {self.name} has no option {name}: leave it out")

    def source_precision(self, options: ExportOptions) -> str:
        """The precision of the PyTorch model that is written."""
        return options.precision

    def source(self, model: "PreTrainedModel", options: ExportOptions) -> "PreTrainedModel":
        """A copy of the model in :meth:`source_precision`, in eval mode on the CPU.

        Raises:
            InputError: the model cannot be converted to that precision.
        """
        made = in_precision(
            model,
            self.source_precision(options),
            "cpu",
            options.calibration_batches,
            symmetric=self.symmetric,
        )
        made.eval()
        return made

    @abstractmethod
    def write(self, model: "PreTrainedModel", folder: Path, options: ExportOptions) -> None:
        """Write a model, as :meth:`source` returns it, into an existing folder.

        Raises:
            InputError: the format cannot express the model, or its tools fail.
        """

    @abstractmethod
    def open(self, folder: Path, names: Sequence[str], precision: str, threads: int) -> Program:
        """Load what was written.

        Args:
            folder: the folder that was written to.
            names: names of the model's inputs, in order.
            precision: precision to compute in.
            threads: number of CPU threads to compute with.
        """

    @abstractmethod
    def usage(self, model: "PreTrainedModel", options: ExportOptions) -> tuple[str, str]:
        """An example of how to run the exported model, and the language it is in."""


_TOKENS = re.compile(
    r"from transformers import AutoTokenizer\ntokens = .*return_tensors=.(pt|np).\)\n"
)
_PIXELS = {
    "pt": "tokens = {'pixel_values': torch.load('pixels.pt')}",
    "np": "import numpy\ntokens = {'pixel_values': numpy.load('pixels.npy')}",
}


def for_images(example: str) -> str:
    """An example of use that reads the pixels of images, [B, C, H, W], where it has a text."""
    return _TOKENS.sub(lambda found: f"{_PIXELS[found[1]]}  # float32, [B, C, H, W]\n", example)
