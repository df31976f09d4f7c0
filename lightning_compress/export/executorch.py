"""ExecuTorch programs for phones and embedded boards, executed by XNNPACK.

Source: "ExecuTorch", https://docs.pytorch.org/executorch; XNNPACK,
https://github.com/google/XNNPACK.
"""

import copy
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lightning_compress.export.format import ExportOptions, Format, Program
from lightning_compress.export.tracing import (
    example_inputs,
    input_names,
    named_inputs,
    program_of,
    traced_again,
)
from lightning_compress.models.modeling_quantized import QuantizedEmbedding, QuantizedLinear
from lightning_compress.quantization.modules import embedding_to_float
from lightning_compress.quantization.precisions import PRECISIONS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FILE = "model.pte"
USAGE = """from executorch.runtime import Runtime
from transformers import AutoTokenizer
tokens = AutoTokenizer.from_pretrained(".")(["A fine film."], return_tensors="pt")
method = Runtime.get().load_program("model.pte").load_method("forward")
print(method.execute([tokens[name] for name in {names}])[0])
"""


class ExecuTorchFormat(Format):
    """``model.pte``, for batches of at most ``max_batch_size`` examples of any length.

    Of a quantized model XNNPACK keeps the weights, whose scales it computes again, and quantizes
    the inputs of linear layers its own way: with one scale for a whole batch, dynamic
    (``int8-dynamic``) or from the calibration batches (``int8-static``).
    """

    name = runtime = "executorch"
    packages = ("executorch", "torchao")
    extra = "executorch"
    precisions = ("fp32", "int8-dynamic", "int8-static")
    recalibrates = True

    def write(self, model: "PreTrainedModel", folder: Path, options: ExportOptions) -> None:
        """Lower the model to XNNPACK."""
        with _quiet():
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir import to_edge_transform_and_lower

            floats = _plain(model)
            # As one operator ExecuTorch 1.5 takes its batch size for fixed.
            slices = {torch.ops.aten.split.Tensor: _in_slices}
            program = program_of(floats, max_batch_size=options.max_batch_size)
            program = program.run_decompositions(slices)
            if options.precision != "fp32":
                program = _quantized(floats, program, options)
            lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
            (folder / FILE).write_bytes(lowered.to_executorch().buffer)

    def open(self, folder: Path, names: Sequence[str], precision: str, threads: int) -> Program:
        """Load the program."""
        return ExecuTorchProgram(folder, names, threads=threads)

    def usage(self, model: "PreTrainedModel", options: ExportOptions) -> tuple[str, str]:
        """Python code."""
        return USAGE.format(names=input_names(model)), "python"


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence deprecation warnings that ExecuTorch's packages raise about their own code."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _mute() -> Iterator[None]:
    """Silence file descriptor 2: the C++ runtime prints what it detects about the CPU."""
    before, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    os.close(nothing)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)


def _plain(model: "PreTrainedModel") -> "PreTrainedModel":
    """A copy of the model in floating point, with layers that XNNPACK supports.

    Quantized weights are dequantized, and GPT-2's ``Conv1D`` becomes ``nn.Linear``.
    """
    from transformers.pytorch_utils import Conv1D

    made: PreTrainedModel = copy.deepcopy(model)
    for name, module in list(made.named_modules()):
        if isinstance(module, QuantizedLinear):
            weight = module.dequantized()
            # The smoothing scale of the inputs is folded into the weight.
            weight = weight if module.smoothing_scale is None else weight * module.smoothing_scale
            made.set_submodule(name, _linear(weight, module.bias))
        elif isinstance(module, Conv1D):
            made.set_submodule(name, _linear(module.weight.detach().t().contiguous(), module.bias))
        elif isinstance(module, QuantizedEmbedding):
            made.set_submodule(name, embedding_to_float(module))
    made.eval()
    return made


def _in_slices(whole: Tensor, size: int, dim: int = 0) -> list[Tensor]:
    """Decompose ``split`` into slices."""
    return [whole.narrow(dim, start, size) for start in range(0, whole.shape[dim], size)]


def _linear(weight: Tensor, bias: nn.Parameter | None) -> nn.Linear:
    """A linear layer with a weight [outputs, inputs]."""
    outputs, inputs = weight.shape
    made = nn.Linear(inputs, outputs, bias=bias is not None)
    made.weight, made.bias = nn.Parameter(weight), bias  # type: ignore[assignment]  # may be None
    return made


def _quantized(
    model: "PreTrainedModel", program: torch.export.ExportedProgram, options: ExportOptions
) -> torch.export.ExportedProgram:
    """The program with int8 linear layers, by torchao's PT2E quantization."""
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    class LinearLayersOnly(XNNPACKQuantizer):  # type: ignore[misc]  # its package is optional
        """Without the step that makes every constant floating-point, position ids included."""

        def transform_for_annotation(self, model: torch.fx.GraphModule) -> torch.fx.GraphModule:
            return model

    dynamic = PRECISIONS[options.precision].activations == "dynamic"
    scheme = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=dynamic)
    quantizer = LinearLayersOnly()
    quantizer.set_module_type(nn.Linear, scheme)
    observed = prepare_pt2e(program.module(), quantizer)
    names = input_names(model)
    # Dynamic scales need no calibration: any batch initializes the observers of the weights.
    given = [named_inputs(names, batch) for batch in options.calibration_batches]
    for inputs in given or [example_inputs(model)]:
        observed(*inputs)
    return traced_again(convert_pt2e(observed), model, max_batch_size=options.max_batch_size)


class ExecuTorchProgram:
    """A program run by ExecuTorch's runtime for Python.

    Args:
        folder: the folder of ``model.pte``.
        names: names of its inputs, in order.
        threads: number of CPU threads.
    """

    def __init__(self, folder: Path, names: Sequence[str], *, threads: int) -> None:
        with _quiet(), _mute():
            from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool
            from executorch.runtime import Runtime

            _unsafe_reset_threadpool(threads)
        self._program = Runtime.get().load_program(folder / FILE)
        self._method = self._program.load_method("forward")
        self._names = names

    def load(self, batch: Mapping[str, Tensor]) -> list[Tensor]:
        """Return the inputs in order, each [B, S]."""
        return named_inputs(self._names, batch)

    def __call__(self, loaded: list[Tensor]) -> Tensor:
        """Run the program: logits."""
        found: Tensor = self._method.execute(loaded)[0]
        return found
