"""OpenVINO's form, made from the ONNX one."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_compress.export.onnx import FILE as ONNX_FILE
from lightning_compress.export.onnx import write_onnx
from lightning_compress.export.tracing import named_inputs
from lightning_compress.types import Batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FILE = "openvino_model.xml"
_GROUP = "128"  # inputs of a token that share a step; of the sizes that there are the fastest
USAGE = """import openvino
from transformers import AutoTokenizer
tokens = AutoTokenizer.from_pretrained(".")(["A fine film."], return_tensors="np")
model = openvino.compile_model("openvino_model.xml", "CPU", {options})
print(model({{i.any_name: tokens[i.any_name] for i in model.inputs}})["logits"])
"""


def write_openvino(
    model: "PreTrainedModel",
    folder: Path,
    *,
    half: bool = False,
    nncf_on: Sequence[Batch] = (),
) -> None:
    """Write a model as ``openvino_model.xml`` and ``.bin``, for batches of any size and length.

    Args:
        model: in eval mode on the CPU; quantized ones keep their weights and steps.
        folder: where to.
        half: whether weights are stored in fp16.
        nncf_on: batches of examples, to let NNCF quantize to int8 on them.
    """
    import openvino

    with tempfile.TemporaryDirectory() as between:
        write_onnx(model, Path(between), reader="openvino")
        made = openvino.convert_model(Path(between) / ONNX_FILE)
        if nncf_on:
            made = _by_nncf(made, nncf_on)
        openvino.save_model(made, folder / FILE, compress_to_fp16=half)


def _by_nncf(model: Any, batches: Sequence[Batch]) -> Any:
    """The model in int8 as NNCF makes it, https://github.com/openvinotoolkit/nncf."""
    import nncf

    names = [one.any_name for one in model.inputs]
    feeds = [dict(zip(names, _arrays(names, batch), strict=True)) for batch in batches]
    transformer = nncf.ModelType.TRANSFORMER
    return nncf.quantize(model, nncf.Dataset(feeds), model_type=transformer, subset_size=len(feeds))


def inference_options(precision: str) -> dict[str, str]:
    """What keeps OpenVINO to a precision.

    By itself it computes in bf16 where the CPU has it, and rounds what meets weights of eight bits,
    asked or not.
    """
    return {
        "INFERENCE_PRECISION_HINT": {"bf16": "bf16", "fp16": "f16"}.get(precision, "f32"),
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": _GROUP if precision == "int8-dynamic" else "0",
    }


def _arrays(names: Sequence[str], batch: Mapping[str, Tensor]) -> list[Any]:
    return [value.numpy() for value in named_inputs(names, batch)]


class OpenVinoProgram:
    """A model compiled by OpenVINO for the CPU.

    Args:
        folder: where ``openvino_model.xml`` lies.
        precision: to compute in.
        threads: to compute with.
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
        """Arrays by name."""
        return dict(zip(self._names, _arrays(self._names, batch), strict=True))

    def __call__(self, loaded: dict[str, Any]) -> Tensor:
        """Run the compiled model."""
        return torch.from_numpy(self._compiled(loaded)["logits"]).float()
