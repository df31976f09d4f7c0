"""One view of the two linear layers of Hugging Face: ``nn.Linear`` and GPT-2's ``Conv1D``.

``nn.Linear`` stores its weight as [outputs, inputs], ``Conv1D`` as [inputs, outputs].
"""

from typing import cast

from torch import nn

from lightning_compress.models.modeling_quantized import QuantizedLinear


def linear_at(model: nn.Module, name: str) -> nn.Linear:
    """The linear layer of that name; a ``Conv1D`` passes for one, its weight transposed."""
    return cast(nn.Linear, model.get_submodule(name))


def output_dim(module: nn.Module) -> int:
    """The dimension of a weight along which the outputs lie; the inputs lie along one minus it."""
    return 0 if isinstance(module, nn.Linear | QuantizedLinear) else 1


def outputs_of(module: nn.Linear) -> int:
    """Number of outputs of a linear layer."""
    return module.weight.shape[output_dim(module)]


def inputs_of(module: nn.Linear) -> int:
    """Number of inputs of a linear layer."""
    if isinstance(module, QuantizedLinear):  # two weights may be in a byte
        return module.in_features
    return module.weight.shape[1 - output_dim(module)]
