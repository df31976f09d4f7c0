"""TensorRT: an engine that ``trtexec`` builds from ONNX on the GPU it is for.

Source: "NVIDIA TensorRT", https://docs.nvidia.com/deeplearning/tensorrt.
"""

import importlib.util
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_compress.errors import InputError
from lightning_compress.export.format import ExportOptions, Format, Program
from lightning_compress.export.onnx import FILE as ONNX_FILE
from lightning_compress.export.onnx import OnnxProgram, write_onnx
from lightning_compress.export.tracing import example_inputs, input_names, named_inputs
from lightning_compress.models.forward import most_tokens
from lightning_compress.models.modeling_quantized import QuantizedLinear

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FILE = "model.engine"
TRTEXEC = "trtexec"
DEVICE = "cuda:0"
_TYPICAL_LENGTH, _LONGEST = 128, 512
# TensorRT 11 has no other mode: the ONNX file states the precision of every operator.
_AS_WRITTEN = ("--stronglyTyped", "--noTF32")


class TensorRtFormat(Format):
    """``model.onnx``, and ``model.engine`` built from it for the first NVIDIA GPU."""

    name = runtime = "tensorrt"
    packages = ("onnx", "onnxscript", "onnxruntime")
    extra = "onnx"
    precisions = ("fp32", "fp16", "int8-static")
    symmetric = True
    own_options = ("dry_run",)
    device = DEVICE

    def missing(self, options: ExportOptions) -> str | None:
        """The packages for ONNX and, unless it is a dry run, TensorRT itself."""
        return super().missing(options) or (None if options.dry_run else _missing_tensorrt())

    def write(self, model: "PreTrainedModel", folder: Path, options: ExportOptions) -> None:
        """Write the ONNX file and, unless it is a dry run, build the engine.

        Raises:
            InputError: TensorRT cannot represent the model, or ``trtexec`` fails.
        """
        _require_symmetric(model)
        write_onnx(model, folder, reader="tensorrt")
        if not options.dry_run:
            _build(build_command(model, options.max_batch_size), folder)

    def open(self, folder: Path, names: Sequence[str], precision: str, threads: int) -> Program:
        """Load the engine; after a dry run the ONNX file, in ONNX Runtime."""
        if (folder / FILE).is_file():
            return TensorRtProgram(folder, names)
        return OnnxProgram(folder, threads=threads)

    def usage(self, model: "PreTrainedModel", options: ExportOptions) -> tuple[str, str]:
        """The shell command that builds the engine."""
        command = build_command(model, options.max_batch_size)
        return f"# builds {FILE}, on the GPU it is for\n{shlex.join(command)}\n", "sh"


def _require_symmetric(model: "PreTrainedModel") -> None:
    asymmetric = [
        name
        for name, layer in model.named_modules()
        if isinstance(layer, QuantizedLinear) and layer.input_zero_point.any()
    ]
    if asymmetric:
        raise InputError(
            f"TensorRT needs activation zero points of 0, and that of {asymmetric[0]} is not: "
            "quantize with symmetric: true"
        )


def _build(command: Sequence[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode or not (folder / FILE).is_file():
        errors = [line for line in (done.stdout + done.stderr).splitlines() if "[E]" in line]
        raise InputError(
            f"{TRTEXEC} failed: {errors[0] if errors else f'status {done.returncode}'}"
        )


def _missing_tensorrt() -> str | None:
    """Which part of TensorRT is not installed, and where to find it; None if all is."""
    if shutil.which(TRTEXEC) is None:
        missing = TRTEXEC
    elif importlib.util.find_spec("tensorrt") is None:
        missing = "the Python package tensorrt"
    else:
        return None
    return (
        f"{missing}: install TensorRT 10 or newer (https://developer.nvidia.com/tensorrt) and its "
        "Python package on a machine with an NVIDIA GPU, or write the ONNX file and the build "
        "command with lightning-compress export --format tensorrt --dry_run"
    )


def build_command(model: "PreTrainedModel", max_batch_size: int) -> list[str]:
    """The command that builds the engine, with one profile for all batch sizes and lengths."""
    longest = min(most_tokens(model) or _LONGEST, _LONGEST)
    shapes = {
        "min": (1, 1),
        "opt": (max_batch_size, min(_TYPICAL_LENGTH, longest)),
        "max": (max_batch_size, longest),
    }
    example = example_inputs(model)[0]
    image = "x".join(map(str, example.shape[1:])) if example.dim() == 4 else None
    profile = [
        f"--{bound}Shapes="
        + ",".join(f"{name}:{rows}x{image or length}" for name in input_names(model))
        for bound, (rows, length) in shapes.items()
    ]
    return [TRTEXEC, f"--onnx={ONNX_FILE}", f"--saveEngine={FILE}", *profile, *_AS_WRITTEN]


class TensorRtProgram:
    """An engine, run by TensorRT's Python runtime on the first GPU.

    Args:
        folder: the folder of ``model.engine``.
        names: names of its inputs, in order.
    """

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        import tensorrt

        self._runtime = tensorrt.Runtime(tensorrt.Logger(tensorrt.Logger.ERROR))
        self._engine = self._runtime.deserialize_cuda_engine((folder / FILE).read_bytes())
        if self._engine is None:
            raise InputError(
                f"TensorRT {tensorrt.__version__} cannot read the engine: build it again"
            )
        self._context = self._engine.create_execution_context()
        half = self._engine.get_tensor_dtype("logits") == tensorrt.float16
        self._dtype = torch.float16 if half else torch.float32
        self._names = names

    def load(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the inputs by name, on the GPU."""
        given = zip(self._names, named_inputs(self._names, batch), strict=True)
        return {name: value.contiguous().to(DEVICE) for name, value in given}

    def __call__(self, loaded: dict[str, Tensor]) -> Tensor:
        """Run the engine: logits in float32, on the CPU."""
        context = self._context
        for name, value in loaded.items():
            context.set_input_shape(name, tuple(value.shape))
            context.set_tensor_address(name, value.data_ptr())
        shape = tuple(context.get_tensor_shape("logits"))
        logits = torch.empty(shape, dtype=self._dtype, device=DEVICE)
        context.set_tensor_address("logits", logits.data_ptr())
        if not context.execute_async_v3(_stream()):
            shapes = {name: tuple(value.shape) for name, value in loaded.items()}
            raise RuntimeError(f"TensorRT failed on a batch of {shapes}")
        return logits.float().cpu()


def _stream() -> int:
    return torch.cuda.current_stream(DEVICE).cuda_stream
