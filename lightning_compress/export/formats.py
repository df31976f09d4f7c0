"""What a model can be exported to, and how each is written, opened and used."""

import importlib.util
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from lightning_compress.export import aotinductor, executorch, onnx, openvino, tensorrt
from lightning_compress.export.program import Program
from lightning_compress.export.tracing import input_names
from lightning_compress.quantization.precisions import PRECISIONS, in_precision
from lightning_compress.types import Batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FormatName = Literal["onnx", "openvino", "executorch", "tensorrt", "aotinductor"]


@dataclass(frozen=True)
class ExportOptions:
    """How a model is exported.

    Args:
        precision: by the names of reports.
        calibration: batches of training examples, where steps are found by the format's own tools.
        nncf: let NNCF quantize to ``int8-static``, of OpenVINO only.
        max_batch_size: of a batch, where a format plans for it.
        dry_run: of TensorRT, leave the engine to be built later.
    """

    precision: str = "fp32"
    calibration: Sequence[Batch] = field(default=(), repr=False)
    nncf: bool = False
    max_batch_size: int = 32
    dry_run: bool = False


class Format(Protocol):
    """A file format and what runs it."""

    @property
    def modules(self) -> tuple[str, ...]:
        """The packages that it needs."""

    @property
    def extra(self) -> str | None:
        """What installs them."""

    @property
    def precisions(self) -> Sequence[str]:
        """Those that it knows."""

    @property
    def symmetric(self) -> bool:
        """Whether the fixed steps of inputs have to be counted from zero."""

    def source(self, options: ExportOptions) -> str:
        """The precision that the model has in PyTorch when it is written."""

    def write(self, model: "PreTrainedModel", folder: Path, options: ExportOptions) -> None:
        """Write a model in that precision, in eval mode on the CPU."""

    def open(self, folder: Path, names: Sequence[str], precision: str, threads: int) -> Program:
        """Open what was written, or what it is built from."""

    def usage(self, model: "PreTrainedModel", options: ExportOptions) -> tuple[str, str]:
        """An example of how to run it, and its language."""


class _Onnx:
    modules: tuple[str, ...] = ("onnx", "onnxscript", "onnxruntime")
    extra = "onnx"
    precisions = tuple(one for one in PRECISIONS if one != "bf16")
    symmetric = False

    def source(self, options: ExportOptions) -> str:
        return options.precision

    def write(self, model: "PreTrainedModel", folder: Path, options: ExportOptions) -> None:
        onnx.write_onnx(model, folder)

    def open(self, folder: Path, names: Sequence[str], precision: str, threads: int) -> Program:
        return onnx.OnnxProgram(folder, threads=threads)

    def usage(self, model: "PreTrainedModel", options: ExportOptions) -> tuple[str, str]:
        return onnx.USAGE, "python"


class _OpenVino:
    modules: tuple[str, ...] = ("onnx", "onnxscript", "openvino")
    extra = "openvino"
    precisions = tuple(one for one in PRECISIONS if one != "int4-weight")
    symmetric = False

    def source(self, options: ExportOptions) -> str:
        floats = options.precision in ("bf16", "fp16") or options.nncf
        return "fp32" if floats else options.precision

    def write(self, model: "PreTrainedModel", folder: Path, options: ExportOptions) -> None:
        openvino.write_openvino(
            model,
            folder,
            half=options.precision == "fp16",
            nncf_on=options.calibration if options.nncf else (),
        )

    def open(self, folder: Path, names: Sequence[str], precision: str, threads: int) -> Program:
        return openvino.OpenVinoProgram(folder, precision=precision, threads=threads)

    def usage(self, model: "PreTrainedModel", options: ExportOptions) -> tuple[str, str]:
        inference = json.dumps(openvino.inference_options(options.precision))
        return openvino.USAGE.format(options=inference), "python"


class _ExecuTorch:
    modules: tuple[str, ...] = ("executorch", "torchao")
    extra = "executorch"
    precisions = ("fp32", "int8-dynamic", "int8-static")
    symmetric = False

    def source(self, options: ExportOptions) -> str:
        return options.precision

    def write(self, model: "PreTrainedModel", folder: Path, options: ExportOptions) -> None:
        executorch.write_executorch(
            model,
            folder,
            precision=options.precision,
            calibration=options.calibration,
            max_batch_size=options.max_batch_size,
        )

    def open(self, folder: Path, names: Sequence[str], precision: str, threads: int) -> Program:
        return executorch.ExecuTorchProgram(folder, names, threads=threads)

    def usage(self, model: "PreTrainedModel", options: ExportOptions) -> tuple[str, str]:
        return executorch.USAGE.format(names=input_names(model)), "python"


class _TensorRt:
    modules: tuple[str, ...] = ("onnx", "onnxscript", "onnxruntime")
    extra = "onnx"
    precisions = ("fp32", "fp16", "int8-static")
    symmetric = True

    def source(self, options: ExportOptions) -> str:
        return options.precision

    def write(self, model: "PreTrainedModel", folder: Path, options: ExportOptions) -> None:
        tensorrt.write_tensorrt(
            model, folder, max_batch_size=options.max_batch_size, dry_run=options.dry_run
        )

    def open(self, folder: Path, names: Sequence[str], precision: str, threads: int) -> Program:
        if (folder / tensorrt.FILE).is_file():
            return tensorrt.TensorRtProgram(folder, names)
        return onnx.OnnxProgram(folder, threads=threads)  # what the engine is built from

    def usage(self, model: "PreTrainedModel", options: ExportOptions) -> tuple[str, str]:
        command = tensorrt.build_command(model, options.max_batch_size)
        return f"# makes {tensorrt.FILE}, on the GPU that it is for\n{shlex.join(command)}\n", "sh"


class _AotInductor:
    modules: tuple[str, ...] = ()
    extra = None
    precisions = PRECISIONS
    symmetric = False

    def source(self, options: ExportOptions) -> str:
        return options.precision

    def write(self, model: "PreTrainedModel", folder: Path, options: ExportOptions) -> None:
        aotinductor.write_aotinductor(model, folder)

    def open(self, folder: Path, names: Sequence[str], precision: str, threads: int) -> Program:
        return aotinductor.AotProgram(folder, names)

    def usage(self, model: "PreTrainedModel", options: ExportOptions) -> tuple[str, str]:
        return aotinductor.USAGE.format(names=input_names(model)), "python"


def source_of(
    model: "PreTrainedModel", chosen: Format, options: ExportOptions
) -> "PreTrainedModel":
    """A copy of a model as a format writes it, in eval mode on the CPU.

    Raises:
        InputError: it cannot be in that precision.
    """
    made = in_precision(
        model,
        chosen.source(options),
        "cpu",
        options.calibration,
        symmetric=chosen.symmetric,
    )
    made.eval()
    return made


def missing_packages(chosen: Format) -> str | None:
    """Which packages a format needs that are not here, and what installs them; None: all are."""
    missing = [name for name in chosen.modules if importlib.util.find_spec(name) is None]
    if not missing:
        return None
    return f"{' and '.join(missing)}: pip install 'lightning-compress[{chosen.extra}]'"


FORMATS: dict[FormatName, Format] = {
    "onnx": _Onnx(),
    "openvino": _OpenVino(),
    "executorch": _ExecuTorch(),
    "tensorrt": _TensorRt(),
    "aotinductor": _AotInductor(),
}
