"""ONNX, run by ONNX Runtime.

Source: "Open Neural Network Exchange", https://onnx.ai/onnx.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_compress.errors import InputError
from lightning_compress.export.format import ExportOptions, Format, Program
from lightning_compress.export.onnx_layers import OPSET, Reader, as_onnx_operators
from lightning_compress.export.tracing import input_names, named_inputs, program_of
from lightning_compress.quantization.precisions import PRECISIONS

if TYPE_CHECKING:
    from onnx_ir import Model
    from transformers import PreTrainedModel

FILE = "model.onnx"
USAGE = """import onnxruntime
from transformers import AutoTokenizer
tokens = AutoTokenizer.from_pretrained(".")(["A fine film."], return_tensors="np")
session = onnxruntime.InferenceSession("model.onnx")
print(session.run(["logits"], {i.name: tokens[i.name] for i in session.get_inputs()})[0])
"""


class OnnxFormat(Format):
    """``model.onnx``, for batches of any size and length, run by ONNX Runtime on the CPU."""

    name = "onnx"
    runtime = "onnxruntime"
    packages = ("onnx", "onnxscript", "onnxruntime")
    extra = "onnx"
    precisions = tuple(one for one in PRECISIONS if one != "bf16")
    own_options = ("signed",)
    saturates = True

    def check(self, options: ExportOptions) -> None:
        """Check the options.

        Raises:
            InputError: also if activations are to be signed, and are not quantized.
        """
        super().check(options)
        if options.signed and PRECISIONS[options.precision].activations == "float":
            raise InputError("signed: only int8-dynamic and int8-static quantize activations")

    def write(self, model: "PreTrainedModel", folder: Path, options: ExportOptions) -> None:
        """Write the model; see :func:`write_onnx`."""
        write_onnx(model, folder, reader="onnxruntime-signed" if options.signed else "onnxruntime")

    def open(self, folder: Path, names: Sequence[str], precision: str, threads: int) -> Program:
        """Open a session."""
        return OnnxProgram(folder, threads=threads)

    def usage(self, model: "PreTrainedModel", options: ExportOptions) -> tuple[str, str]:
        """Python code."""
        return USAGE, "python"


def write_onnx(model: "PreTrainedModel", folder: Path, *, reader: Reader = "onnxruntime") -> None:
    """Write a model as ``model.onnx``, for batches of any size and length.

    The file passes ONNX's checker with shape inference. Weights above two gigabytes are written
    to files beside it.

    Args:
        model: in eval mode on the CPU; quantized layers keep their integer weights and scales.
        folder: an existing folder.
        reader: the runtime that will read the file; it decides which operators represent
            quantized layers.
    """
    import onnx

    with as_onnx_operators(model, reader), _quiet_exporter():
        written = torch.onnx.export(
            program_of(model),
            dynamo=True,
            input_names=input_names(model),
            output_names=["logits"],
            opset_version=OPSET,
            verbose=False,
        )
    assert written is not None
    _separate_zero_points_(written.model)
    written.save(folder / FILE)
    onnx.checker.check_model(str(folder / FILE), full_check=True)


def _separate_zero_points_(model: "Model") -> None:
    """Give each quantized weight zero points of its own; the exporter lets equal ones be shared.

    On CPUs with AVX2 only, ONNX Runtime converts weights in full range and their zero points to
    uint8, and fails where two weights share zero points (``session.x64quantprecision``, 1.31).
    """
    from onnx_ir import Value

    for node in model.graph:
        weight = node.inputs[0] if node.op_type == "DequantizeLinear" else None
        if weight is None or not weight.is_initializer():
            continue
        shared = node.inputs[2]
        assert shared is not None
        own = Value(
            name=f"{weight.name}/zero_points",
            shape=shared.shape,
            type=shared.type,
            const_value=shared.const_value,
        )
        model.graph.register_initializer(own)
        node.replace_input_with(2, own)
        if shared.name is not None and not shared.uses():
            model.graph.initializers.pop(shared.name, None)


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silence the exporter's warnings about operators of optional packages."""
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
        folder: the folder of ``model.onnx``.
        threads: number of CPU threads.
    """

    def __init__(self, folder: Path, *, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # Idle threads that spin would slow down whatever is measured next.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        # Slower and exact products where weights are in full range and sums could overflow.
        options.add_session_config_entry("session.x64quantprecision", "1")
        options.log_severity_level = 3  # errors; its warnings are about its own optimizations
        self._session = onnxruntime.InferenceSession(
            folder / FILE, options, providers=["CPUExecutionProvider"]
        )
        self._names = [one.name for one in self._session.get_inputs()]

    def load(self, batch: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return the inputs as arrays by name, each [B, S]."""
        given = named_inputs(self._names, batch)
        return {n: value.numpy() for n, value in zip(self._names, given, strict=True)}

    def __call__(self, loaded: dict[str, Any]) -> Tensor:
        """Run the session: logits in float32."""
        return torch.from_numpy(self._session.run(["logits"], loaded)[0]).float()
