"""TensorRT's form: an engine, which ``trtexec`` builds from the ONNX one on the GPU it is for.

Source: "NVIDIA TensorRT", https://docs.nvidia.com/deeplearning/tensorrt.
"""

import importlib.util
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_compress.errors import InputError
from lightning_compress.export.onnx import FILE as ONNX_FILE
from lightning_compress.export.onnx import write_onnx
from lightning_compress.export.tracing import input_names, named_inputs
from lightning_compress.models.forward import most_tokens
from lightning_compress.models.modeling_quantized import QuantizedLinear

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FILE = "model.engine"
PROGRAM = "trtexec"
DEVICE = "cuda:0"
_TYPICAL_LENGTH, _LONGEST = 128, 512
# From version 11 on all that there is: the file says of every operator what it computes in.
_AS_WRITTEN = ("--stronglyTyped", "--noTF32")


def write_tensorrt(
    model: "PreTrainedModel", folder: Path, *, max_batch_size: int, dry_run: bool
) -> None:
    """Write a model as ``model.onnx``, and build ``model.engine`` of it.

    Args:
        model: in eval mode on the CPU.
        folder: where to.
        max_batch_size: in a batch; the engine is optimised for this number.
        dry_run: leave the engine to be built later.

    Raises:
        InputError: TensorRT cannot do it, or is not there.
    """
    missing = None if dry_run else missing_part()
    if missing is not None:
        raise InputError(missing)
    shifted = [
        name
        for name, layer in model.named_modules()
        if isinstance(layer, QuantizedLinear) and layer.input_zero.any()
    ]
    if shifted:
        raise InputError(
            f"TensorRT counts the steps of inputs from zero, and those of {shifted[0]} begin "
            "elsewhere: quantize with symmetric: true"
        )
    write_onnx(model, folder, reader="tensorrt")
    if dry_run:
        return
    done = subprocess.run(
        build_command(model, max_batch_size),
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode or not (folder / FILE).is_file():
        said = [line for line in (done.stdout + done.stderr).splitlines() if "[E]" in line]
        raise InputError(f"{PROGRAM} failed: {said[0] if said else f'status {done.returncode}'}")


def missing_part() -> str | None:
    """What of TensorRT is not here, and where it is from; None: all is."""
    if shutil.which(PROGRAM) is not None and importlib.util.find_spec("tensorrt") is not None:
        return None
    what = PROGRAM if shutil.which(PROGRAM) is None else "package tensorrt for Python"
    return (
        f"there is no {what} here: install TensorRT 10 or newer (https://developer.nvidia.com/"
        "tensorrt) and its package for Python on a machine with an NVIDIA GPU, or write what it "
        "needs with lightning-compress export --format tensorrt --dry_run"
    )


def build_command(model: "PreTrainedModel", max_batch_size: int) -> list[str]:
    """What builds the engine, with one profile for all sizes and lengths."""
    longest = min(most_tokens(model.config) or _LONGEST, _LONGEST)
    shapes = {
        "min": (1, 1),
        "opt": (max_batch_size, min(_TYPICAL_LENGTH, longest)),
        "max": (max_batch_size, longest),
    }
    profile = [
        f"--{bound}Shapes=" + ",".join(f"{name}:{rows}x{length}" for name in input_names(model))
        for bound, (rows, length) in shapes.items()
    ]
    return [PROGRAM, f"--onnx={ONNX_FILE}", f"--saveEngine={FILE}", *profile, *_AS_WRITTEN]


class TensorRtProgram:
    """An engine, run by TensorRT's runtime for Python on the first GPU.

    Args:
        folder: where ``model.engine`` lies.
        names: of its inputs.
    """

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        import tensorrt

        self._runtime = tensorrt.Runtime(tensorrt.Logger(tensorrt.Logger.ERROR))
        self._engine = self._runtime.deserialize_cuda_engine((folder / FILE).read_bytes())
        if self._engine is None:
            raise InputError(f"TensorRT {tensorrt.__version__} cannot read the engine: build anew")
        self._context = self._engine.create_execution_context()
        half = self._engine.get_tensor_dtype("logits") == tensorrt.float16
        self._dtype = torch.float16 if half else torch.float32
        self._names = names

    def load(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors by name, on the GPU."""
        given = zip(self._names, named_inputs(self._names, batch), strict=True)
        return {name: value.contiguous().to(DEVICE) for name, value in given}

    def __call__(self, loaded: dict[str, Tensor]) -> Tensor:
        """Run the engine."""
        context = self._context
        for name, value in loaded.items():
            context.set_input_shape(name, tuple(value.shape))
            context.set_tensor_address(name, value.data_ptr())
        shape = tuple(context.get_tensor_shape("logits"))
        logits = torch.empty(shape, dtype=self._dtype, device=DEVICE)
        context.set_tensor_address("logits", logits.data_ptr())
        if not context.execute_async_v3(_stream()):
            raise RuntimeError(f"TensorRT failed on a batch of {tuple(loaded['input_ids'].shape)}")
        return logits.float().cpu()


def _stream() -> int:
    return torch.cuda.current_stream(DEVICE).cuda_stream
