"""TensorRT's form: an engine, which ``trtexec`` builds from the ONNX one on the GPU it is for."""

import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_compress.errors import InputError
from lightning_compress.export.onnx import FILE as ONNX_FILE
from lightning_compress.export.onnx import write_onnx
from lightning_compress.export.tracing import input_names
from lightning_compress.models.inputs import most_tokens
from lightning_compress.models.modeling_quantized import QuantizedLinear

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FILE = "model.engine"
PROGRAM = "trtexec"
_TYPICAL_LENGTH, _LONGEST = 128, 512


def write_tensorrt(
    model: "PreTrainedModel", folder: Path, *, precision: str, most_examples: int, dry_run: bool
) -> None:
    """Write a model as ``model.onnx``, and build ``model.engine`` of it.

    Args:
        model: in eval mode on the CPU.
        folder: where to.
        precision: ``fp32``, ``fp16`` or ``int8-static``.
        most_examples: in a batch; the engine is optimised for this number.
        dry_run: leave the engine to be built later.

    Raises:
        InputError: TensorRT cannot do it, or is not there.
    """
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
    if shutil.which(PROGRAM) is None:
        raise InputError(
            f"there is no {PROGRAM} here: install TensorRT 10 or newer (https://developer.nvidia"
            ".com/tensorrt) on a machine with an NVIDIA GPU, or write what it needs with --dry-run"
        )
    command = build_command(model, precision, most_examples)
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode or not (folder / FILE).is_file():
        said = [line for line in (done.stdout + done.stderr).splitlines() if "[E]" in line]
        raise InputError(f"{PROGRAM} failed: {said[0] if said else f'status {done.returncode}'}")


def build_command(model: "PreTrainedModel", precision: str, most_examples: int) -> list[str]:
    """What builds the engine, with one profile for all sizes and lengths."""
    longest = min(most_tokens(model.config) or _LONGEST, _LONGEST)
    shapes = {
        "min": (1, 1),
        "opt": (most_examples, min(_TYPICAL_LENGTH, longest)),
        "max": (most_examples, longest),
    }
    profile = [
        f"--{bound}Shapes=" + ",".join(f"{name}:{rows}x{length}" for name in input_names(model))
        for bound, (rows, length) in shapes.items()
    ]
    # With whole numbers the file says of every operator what it computes in.
    kind = {"fp16": ["--fp16"], "int8-static": ["--stronglyTyped"]}.get(precision, [])
    return [PROGRAM, f"--onnx={ONNX_FILE}", f"--saveEngine={FILE}", *profile, *kind]
