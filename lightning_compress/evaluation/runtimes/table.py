"""The table of runtimes.

A new runtime is a subclass of :class:`~.runtime.Runtime` in a file of its own, and a line in
:data:`RUNTIMES`. Every export format is a runtime by itself.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

from lightning_compress.evaluation.runtimes.compiled import CompileRuntime
from lightning_compress.evaluation.runtimes.eager import EagerRuntime
from lightning_compress.evaluation.runtimes.exported import ExportedRuntime
from lightning_compress.evaluation.runtimes.runtime import Runtime, RuntimeOptions
from lightning_compress.export.formats import FORMATS

RuntimeName = Literal[
    "eager", "compile", "onnxruntime", "openvino", "executorch", "tensorrt", "aotinductor"
]

RUNTIMES: dict[str, Callable[[RuntimeOptions], Runtime]] = {
    "eager": EagerRuntime,
    "compile": CompileRuntime,
    **{format.runtime: partial(ExportedRuntime, format) for format in FORMATS.values()},
}


def available_runtimes() -> list[str]:
    """The names of the runtimes whose packages are installed."""
    options = RuntimeOptions()
    return [name for name, runtime in RUNTIMES.items() if runtime(options).missing() is None]
