"""The runtimes by name.

A further one is one more class with the methods of :class:`~.runtime.Runtime`, in a file of its
own, and one more line here.
"""

from collections.abc import Sequence
from typing import Literal

from lightning_compress.evaluation.runtimes.compiled import CompileRuntime
from lightning_compress.evaluation.runtimes.eager import EagerRuntime
from lightning_compress.evaluation.runtimes.exported import ExportedRuntime, TensorRtRuntime
from lightning_compress.evaluation.runtimes.runtime import Runtime
from lightning_compress.export.formats import FORMATS, FormatName, missing_packages
from lightning_compress.export.tensorrt import missing_part
from lightning_compress.types import Batch

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
    names: Sequence[str], calibration: Sequence[Batch], *, max_batch_size: int, timeout_s: float
) -> list[Runtime]:
    """Build the runtimes of a benchmark.

    Args:
        names: which.
        calibration: training examples, for precisions that need some.
        max_batch_size: of a batch.
        timeout_s: seconds that exporting or compiling a model, and each run of it, may take.
    """
    known: dict[str, Runtime] = {
        "eager": EagerRuntime(calibration=calibration),
        "compile": CompileRuntime(calibration=calibration, timeout_s=timeout_s),
    }
    for name, format in EXPORTED.items():
        kind = TensorRtRuntime if name == "tensorrt" else ExportedRuntime
        known[name] = kind(
            name,
            format,
            calibration=calibration,
            max_batch_size=max_batch_size,
            timeout_s=timeout_s,
        )
    return [known[name] for name in names]
