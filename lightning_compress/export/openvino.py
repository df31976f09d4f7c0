"""OpenVINO's intermediate representation, converted from ONNX, run by OpenVINO on the CPU.

Source: "OpenVINO", https://docs.openvino.ai; NNCF, https://github.com/openvinotoolkit/nncf.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_compress.atomic import scratch_folder
from lightning_compress.errors import InputError
from lightning_compress.export.format import ExportOptions, Format, Program
from lightning_compress.export.onnx import FILE as ONNX_FILE
from lightning_compress.export.onnx import write_onnx
from lightning_compress.export.tracing import named_inputs
from lightning_compress.quantization.precisions import PRECISIONS
from lightning_compress.types import Batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FILE = "openvino_model.xml"
_HINTS = {torch.bfloat16: "bf16", torch.float16: "f16"}
_GROUP_SIZE = "128"  # activations of a token that share a scale; the fastest of the sizes offered
USAGE = """import openvino
from transformers import AutoTokenizer
tokens = AutoTokenizer.from_pretrained(".")(["A fine film."], return_tensors="np")
model = openvino.compile_model("openvino_model.xml", "CPU", {options})
print(model({{i.any_name: tokens[i.any_name] for i in model.inputs}})["logits"])
"""


class OpenVinoFormat(Format):
    """``openvino_model.xml`` and ``.bin``, for batches of any size and length."""

    name = runtime = "openvino"
    packages = ("onnx", "onnxscript", "openvino")
    extra = "openvino"
    precisions = tuple(one for one in PRECISIONS if one != "int4-weight")
    own_options = ("nncf",)
    saturates = True

    def check(self, options: ExportOptions) -> None:
        """Check the options.

        Raises:
            InputError: also if NNCF is to quantize to another precision than ``int8-static``.
        """
        super().check(options)
        if options.nncf and options.precision != "int8-static":
            raise InputError("nncf quantizes to --precision int8-static only")

    def source_precision(self, options: ExportOptions) -> str:
        """fp32 where OpenVINO casts, or NNCF quantizes."""
        converted = PRECISIONS[options.precision].dtype is not None or options.nncf
        return "fp32" if converted else options.precision

    def write(self, model: "PreTrainedModel", folder: Path, options: ExportOptions) -> None:
        """Convert the model; for fp16 its weights are stored in fp16."""
        import openvino

        with scratch_folder() as between:
            write_onnx(model, between, reader="openvino")
            made = openvino.convert_model(between / ONNX_FILE)
            if options.nncf:
                made = _quantized_by_nncf(made, options.calibration_batches)
            half = PRECISIONS[options.precision].dtype == torch.float16
            openvino.save_model(made, folder / FILE, compress_to_fp16=half)

    def open(self, folder: Path, names: Sequence[str], precision: str, threads: int) -> Program:
        """Compile the model for the CPU."""
        return OpenVinoProgram(folder, precision=precision, threads=threads)

    def usage(self, model: "PreTrainedModel", options: ExportOptions) -> tuple[str, str]:
        """Python code."""
        inference = json.dumps(inference_options(options.precision))
        return USAGE.format(options=inference), "python"


def _quantized_by_nncf(model: Any, batches: Sequence[Batch]) -> Any:
    """The model in int8, calibrated on the batches."""
    import nncf

    names = [one.any_name for one in model.inputs]
    feeds = [dict(zip(names, _arrays(names, batch), strict=True)) for batch in batches]
    transformer = nncf.ModelType.TRANSFORMER
    return nncf.quantize(model, nncf.Dataset(feeds), model_type=transformer, subset_size=len(feeds))


def inference_options(precision: str) -> dict[str, str]:
    """Settings that keep OpenVINO to a precision.

    By default it computes in bf16 where the CPU supports it, and quantizes the activations of
    layers with int8 weights.
    """
    chosen = PRECISIONS[precision]
    return {
        "INFERENCE_PRECISION_HINT": _HINTS.get(chosen.dtype or torch.float32, "f32"),
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": _GROUP_SIZE if chosen.activations == "dynamic" else "0",
    }


def _arrays(names: Sequence[str], batch: Mapping[str, Tensor]) -> list[Any]:
    return [value.numpy() for value in named_inputs(names, batch)]


class OpenVinoProgram:
    """A model compiled by OpenVINO for the CPU.

    Args:
        folder: the folder of ``openvino_model.xml``.
        precision: precision to compute in.
        threads: number of CPU threads.
    """

    def __init__(self, folder: Path, *, precision: str, threads: int) -> None:
        import openvino

        options = {
            **inference_options(precision),
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
        }
        self._compiled = openvino.Core().compile_model(folder / FILE, "CPU", options)
        self._names = [one.any_name for one in self._compiled.inputs]

    def load(self, batch: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return the inputs as arrays by name, each [B, S]."""
        return dict(zip(self._names, _arrays(self._names, batch), strict=True))

    def __call__(self, loaded: dict[str, Any]) -> Tensor:
        """Run the compiled model: logits in float32."""
        return torch.from_numpy(self._compiled(loaded)["logits"]).float()
