"""ONNX, and ONNX Runtime, which runs it."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_compress.export.onnx_layers import OPSET, Reader, in_onnx_forms
from lightning_compress.export.tracing import input_names, named_inputs, program_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FILE = "model.onnx"
USAGE = """import onnxruntime
from transformers import AutoTokenizer
tokens = AutoTokenizer.from_pretrained(".")(["A fine film."], return_tensors="np")
session = onnxruntime.InferenceSession("model.onnx")
print(session.run(["logits"], {i.name: tokens[i.name] for i in session.get_inputs()})[0])
"""


def write_onnx(model: "PreTrainedModel", folder: Path, *, reader: Reader = "onnxruntime") -> None:
    """Write a model as ``model.onnx``, for batches of any size and length.

    The file passes ONNX's checker, shapes inferred. Weights beyond two gigabytes lie beside it.

    Args:
        model: in eval mode on the CPU; quantized ones keep their weights and steps.
        folder: where to.
        reader: what will run the file, in which quantized layers take its form.
    """
    import onnx

    with in_onnx_forms(model, reader), _quiet_exporter():
        written = torch.onnx.export(
            program_of(model),
            dynamo=True,
            input_names=input_names(model),
            output_names=["logits"],
            opset_version=OPSET,
            verbose=False,
        )
    assert written is not None
    written.save(folder / FILE)
    onnx.checker.check_model(str(folder / FILE), full_check=True)


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """The exporter tells of operators of packages that are not there and not needed."""
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        yield
    finally:
        exporter.setLevel(level)


class OnnxProgram:
    """A session of ONNX Runtime.

    Args:
        folder: where ``model.onnx`` lies.
        threads: to compute with.
    """

    def __init__(self, folder: Path, *, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # Its idle threads would take their time from whatever is measured next.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.log_severity_level = 3  # errors; warnings speak of its own optimizations
        self._session = onnxruntime.InferenceSession(
            folder / FILE, options, providers=["CPUExecutionProvider"]
        )
        self._names = [one.name for one in self._session.get_inputs()]

    def load(self, batch: Mapping[str, Tensor]) -> dict[str, Any]:
        """Arrays by name."""
        given = named_inputs(self._names, batch)
        return {n: value.numpy() for n, value in zip(self._names, given, strict=True)}

    def __call__(self, loaded: dict[str, Any]) -> Tensor:
        """Run the session."""
        return torch.from_numpy(self._session.run(["logits"], loaded)[0]).float()
