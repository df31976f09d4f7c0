"""AOTInductor: a program that PyTorch compiles ahead of time and runs without the model's code.

Source: Ansel et al., "PyTorch 2: Faster Machine Learning Through Dynamic Python Bytecode
Transformation and Graph Compilation", 2024, https://doi.org/10.1145/3620665.3640366.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_compress.export.format import ExportOptions, Format, Program
from lightning_compress.export.tracing import input_names, named_inputs, program_of
from lightning_compress.quantization.precisions import PRECISIONS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FILE = "model.pt2"
USAGE = """import torch
from transformers import AutoTokenizer
tokens = AutoTokenizer.from_pretrained(".")(["A fine film."], return_tensors="pt")
model = torch._inductor.aoti_load_package("model.pt2")
print(model(*(tokens[name] for name in {names})))
"""


class AotInductorFormat(Format):
    """``model.pt2``, for batches of any size and length, on the CPU of the machine that writes it.

    It needs no package but torch, and a C++ compiler to write it.
    """

    name = runtime = "aotinductor"
    precisions = tuple(PRECISIONS)

    def write(self, model: "PreTrainedModel", folder: Path, options: ExportOptions) -> None:
        """Compile the model."""
        torch._inductor.aoti_compile_and_package(program_of(model), package_path=str(folder / FILE))

    def open(self, folder: Path, names: Sequence[str], precision: str, threads: int) -> Program:
        """Load the compiled model; it computes with the threads that torch is set to."""
        return AotInductorProgram(folder, names)

    def usage(self, model: "PreTrainedModel", options: ExportOptions) -> tuple[str, str]:
        """Python code."""
        return USAGE.format(names=input_names(model)), "python"


class AotInductorProgram:
    """A compiled program; it computes with the threads that torch is set to.

    Args:
        folder: the folder of ``model.pt2``.
        names: names of its inputs, in order.
    """

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self._program = torch._inductor.aoti_load_package(str(folder / FILE))
        self._names = names

    def load(self, batch: Mapping[str, Tensor]) -> list[Tensor]:
        """Return the inputs in order, each [B, S]."""
        return named_inputs(self._names, batch)

    def __call__(self, loaded: list[Tensor]) -> Tensor:
        """Run the program: logits in float32."""
        with torch.inference_mode():
            logits: Tensor = self._program(*loaded)
        return logits.float()
