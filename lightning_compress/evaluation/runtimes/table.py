"""The runtimes by name.

A further one is one more class with the methods of :class:`~.runtime.Runtime`, in a file of its
own, and one more line here.
"""

from collections.abc import Sequence
from typing import Literal

from lightning_compress.evaluation.examples import Batch
from lightning_compress.evaluation.runtimes.compiled import CompileRuntime
from lightning_compress.evaluation.runtimes.eager import EagerRuntime
from lightning_compress.evaluation.runtimes.exported import ExportedRuntime, TensorRtRuntime
from lightning_compress.evaluation.runtimes.runtime import Runtime
from lightning_compress.export.formats import FORMATS, FormatName, missing_packages
from lightning_compress.export.tensorrt import missing_part

RuntimeName = Literal["eager", "compile", "onnxruntime", "openvino", "executorch", "tensorrt"]


EXPORTED: dict[RuntimeName, FormatName] = {
    "onnxruntime": "onnx", "openvino": "openvino", "executorch": "executorch",
    "tensorrt": "tensorrt",
}  # fmt: skip


def runtimes_here() -> list[RuntimeName]:
    """All whose packages are installed."""
    exported = [name for name, kind in EXPORTED.items() if missing_packages(FORMATS[kind]) is None]
    if missing_part() is not None:
        exported = [name for name in exported if name != "tensorrt"]
    return ["eager", "compile", *exported]


def runtimes_named(
    names: Sequence[str], calibration: Sequence[Batch], *, most_examples: int, limit: float
) -> list[Runtime]:
    """Build the runtimes of a benchmark.

    Args:
        names: which.
        calibration: training examples, for precisions that need some.
        most_examples: of a batch.
        limit: seconds that exporting or compiling a model, and each run of it, may take.
    """
    known: dict[str, Runtime] = {
        "eager": EagerRuntime(calibration=calibration),
        "compile": CompileRuntime(calibration=calibration, limit=limit),
    }
    for name, format in EXPORTED.items():
        kind = TensorRtRuntime if name == "tensorrt" else ExportedRuntime
        known[name] = kind(
            name, format, calibration=calibration, most_examples=most_examples, limit=limit
        )
    return [known[name] for name in names]
