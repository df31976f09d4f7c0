"""PyTorch's own form: a program compiled ahead of time, that needs torch only."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_compress.export.tracing import named_inputs, program_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FILE = "model.pt2"
USAGE = """import torch
from transformers import AutoTokenizer
tokens = AutoTokenizer.from_pretrained(".")(["A fine film."], return_tensors="pt")
model = torch._inductor.aoti_load_package("model.pt2")
print(model(*(tokens[name] for name in {names})))
"""


def write_aotinductor(model: "PreTrainedModel", folder: Path) -> None:
    """Compile a model as ``model.pt2``, for batches of any size and length, on this machine's CPU.

    Source: Ansel et al., "PyTorch 2: Faster Machine Learning Through Dynamic Python Bytecode
    Transformation and Graph Compilation", 2024, https://doi.org/10.1145/3620665.3640366.
    """
    torch._inductor.aoti_compile_and_package(program_of(model), package_path=str(folder / FILE))


class AotProgram:
    """A program of AOTInductor; it computes with the threads that torch is set to.

    Args:
        folder: where ``model.pt2`` lies.
        names: of its inputs, in order.
    """

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self._program = torch._inductor.aoti_load_package(str(folder / FILE))
        self._names = names

    def load(self, batch: Mapping[str, Tensor]) -> list[Tensor]:
        """Tensors in order."""
        return named_inputs(self._names, batch)

    def __call__(self, loaded: list[Tensor]) -> Tensor:
        """Run the program."""
        with torch.inference_mode():
            found: Tensor = self._program(*loaded)
        return found.float()
