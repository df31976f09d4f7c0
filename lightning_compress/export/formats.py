"""The table of export formats.

A new format is a subclass of :class:`~lightning_compress.export.format.Format` in a file of its
own, and a line in :data:`FORMATS`; it can then be benchmarked as a runtime too.
"""

from typing import Literal

from lightning_compress.export.aotinductor import AotInductorFormat
from lightning_compress.export.executorch import ExecuTorchFormat
from lightning_compress.export.format import Format
from lightning_compress.export.onnx import OnnxFormat
from lightning_compress.export.openvino import OpenVinoFormat
from lightning_compress.export.tensorrt import TensorRtFormat

FormatName = Literal["onnx", "openvino", "executorch", "tensorrt", "aotinductor"]

FORMATS: dict[str, Format] = {
    format.name: format
    for format in (
        OnnxFormat(),
        OpenVinoFormat(),
        ExecuTorchFormat(),
        TensorRtFormat(),
        AotInductorFormat(),
    )
}
