"""Layers in training that say what they will say once they are quantized.

What the forward pass says is computed by the quantized module itself, so it is the same to the last
bit. Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", 2018, https://arxiv.org/abs/1712.05877.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from lightning_compress.errors import InputError
from lightning_compress.models.manifest import (
    PREPARATION_EDIT,
    QUANTIZATION_EDIT,
    manifest_of,
    set_manifest_,
)
from lightning_compress.models.modeling_compressed import put_
from lightning_compress.models.modeling_quantized import QuantizedEmbedding, QuantizedLinear
from lightning_compress.quantization.modules import fill_, quantized_embedding
from lightning_compress.quantization.straight_through import as_quantized, rounded_rows


class RoundedLinear(nn.Linear):
    """``nn.Linear`` that rounds.

    It keeps the names of its parameters. ``spec`` describes the quantized module that it will be.
    Where steps are learned they are those at the beginning, the buffers ``weight_step`` [outputs]
    and ``input_step`` [1], times the exponentials of two more parameters, ``weight_stretch``
    [outputs] and ``input_stretch`` [1]: so an optimizer changes them in proportion, and they stay
    positive. Further buffers are ``input_zero`` [1] int32 and, where inputs are smoothed,
    ``factor`` [inputs].
    """

    spec: dict[str, Any]

    def forward(self, inputs: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs]."""
        return _said(self, self.weight, inputs)

    def quantized(self) -> QuantizedLinear:
        """The quantized module that says the same."""
        return _quantized(self, self.weight)


class RoundedConv1D(Conv1D):
    """GPT-2's ``Conv1D`` that rounds; as :class:`RoundedLinear`."""

    spec: dict[str, Any]

    def forward(self, inputs: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs]."""
        return _said(self, self.weight.t(), inputs)

    def quantized(self) -> QuantizedLinear:
        """The quantized module that says the same."""
        return _quantized(self, self.weight.t())


class RoundedEmbedding(nn.Embedding):
    """``nn.Embedding`` that rounds."""

    def forward(self, ids: Tensor) -> Tensor:
        """[...] to [..., width]."""
        return rounded_rows(functional.embedding(ids, self.weight, self.padding_idx))

    def quantized(self) -> QuantizedEmbedding:
        """The quantized module that says the same."""
        return quantized_embedding(self)


Rounded = RoundedLinear | RoundedConv1D | RoundedEmbedding


def _said(layer: Any, matrix: Tensor, inputs: Tensor) -> Tensor:
    """What a linear layer with that weight, [outputs, inputs], says."""
    return as_quantized(layer.quantized(), inputs, matrix, layer.bias, *_steps(layer))


def _steps(layer: Any) -> tuple[Tensor | None, Tensor | None]:
    """The learned steps of weights [outputs, 1] and of inputs [1], as far as there are any."""
    of_weight = of_input = None
    if hasattr(layer, "weight_stretch"):
        of_weight = (layer.weight_step * layer.weight_stretch.exp()).unsqueeze(1)
    if hasattr(layer, "input_stretch"):
        of_input = layer.input_step * layer.input_stretch.exp()
    return of_weight, of_input


@torch.no_grad()
def _quantized(layer: Any, matrix: Tensor) -> QuantizedLinear:
    made = QuantizedLinear(**layer.spec).to(matrix.device)
    made.bias = layer.bias
    if made.factor is not None:
        made.factor.copy_(layer.factor)
    step, input_step = _steps(layer)
    zero = None if input_step is None else layer.input_zero
    fill_(made, matrix, step=step, input_step=input_step, input_zero=zero)
    return made.train(layer.training)


_CLASSES = {nn.Linear: RoundedLinear, Conv1D: RoundedConv1D, nn.Embedding: RoundedEmbedding}


def round_(module: nn.Module, spec: Mapping[str, Any], *, own_weight: bool = True) -> None:
    """Make a layer one that rounds, in place; learned steps are unset.

    Args:
        module: an ``nn.Linear``, ``Conv1D`` or ``nn.Embedding``. Its parameters stay what they are.
        spec: of the quantized module that it will be.
        own_weight: whether the weight is its own; the step of one that is shared is not learned.
    """
    weight: Any = module.weight
    module.__class__ = _CLASSES[type(module)]
    if "rows" in spec:
        return
    module.spec = dict(spec)  # type: ignore[assignment]  # torch allows any attribute
    if spec["smooth"]:
        module.register_buffer("factor", weight.new_ones(spec["inputs"]))
    if spec["activations"] == "static":
        sizes = {"weight": spec["outputs"]} if own_weight else {}
        for name, size in (sizes | {"input": 1}).items():
            module.register_buffer(f"{name}_step", weight.new_ones(size))
            module.register_parameter(f"{name}_stretch", nn.Parameter(weight.new_zeros(size)))
        module.register_buffer(
            "input_zero", torch.zeros(1, dtype=torch.int32, device=weight.device)
        )


def rounded_specs(model: nn.Module) -> dict[str, dict[str, Any]]:
    """What the layers that round will be, by name, as plain data."""
    return {
        name: {
            "spec": {"rows": True} if isinstance(module, RoundedEmbedding) else dict(module.spec),
            "own_weight": hasattr(module, "weight_stretch"),
        }
        for name, module in model.named_modules()
        if isinstance(module, Rounded)
    }


def place_rounded_(model: nn.Module, specs: Mapping[str, Mapping[str, Any]]) -> None:
    """Give a model layers that round, as of :func:`rounded_specs`, in place."""
    for name, spec in specs.items():
        if not isinstance(model.get_submodule(name), Rounded):
            round_(model.get_submodule(name), spec["spec"], own_weight=spec["own_weight"])


@torch.no_grad()
def convert_(model: nn.Module) -> None:
    """Put the quantized modules in the place of those that round, in place.

    Raises:
        InputError: the model was not prepared.
    """
    edits = manifest_of(model)
    if not is_prepared(model):
        raise InputError(f"{type(model).__name__} has no layers that round: prepare it first")
    rounded = {n: module for n, module in model.named_modules() if isinstance(module, Rounded)}
    made = {name: module.quantized() for name, module in rounded.items()}
    owners: dict[Tensor, str] = {}
    for name, module in rounded.items():
        made[name].weight = made[owners.setdefault(module.weight, name)].weight
    for name, quantized in made.items():
        put_(model, name, quantized)
    done = {"edit": QUANTIZATION_EDIT}
    set_manifest_(
        model, [{**edit, **done} if edit["edit"] == PREPARATION_EDIT else edit for edit in edits]
    )


def stretches_of(model: nn.Module) -> list[nn.Parameter]:
    """What learns the steps of the layers that round."""
    return [
        parameter
        for module in model.modules()
        if isinstance(module, RoundedLinear | RoundedConv1D)
        for name, parameter in module.named_parameters(recurse=False)
        if name.endswith("_stretch")
    ]


def is_prepared(model: nn.Module) -> bool:
    """Whether the layers of a model round."""
    return any(edit["edit"] == PREPARATION_EDIT for edit in manifest_of(model))
