"""Fake-quantized layers: floating-point parameters in training, quantized in the forward pass.

The forward pass runs the quantized module itself, made anew from the current parameters, so it is
bit-identical to the converted model's. Source: Jacob et al., "Quantization and Training of Neural
Networks for Efficient Integer-Arithmetic-Only Inference", 2018, https://arxiv.org/abs/1712.05877.
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
    StatePart,
    edits_of,
    manifest_of,
    set_manifest_,
)
from lightning_compress.models.modeling_quantized import QuantizedEmbedding, QuantizedLinear
from lightning_compress.quantization.modules import (
    embedding_factor,
    embedding_from_float,
    linear_weight,
    pack_weights_,
)
from lightning_compress.quantization.straight_through import (
    fake_quantize_per_row,
    fake_quantized_linear,
)


class _FakeQuantizedLayer(nn.Module):
    """What :class:`FakeQuantLinear` and :class:`FakeQuantConv1D` share.

    Attributes:
        spec: of the quantized module that the layer becomes.
        weight_scale: initial weight scales, [out_features]; None unless they are learned.
        weight_log_scale: learned, [out_features]: the weight scales are ``weight_scale`` times
            its exponential, so an optimizer changes them in proportion and they stay positive.
        input_scale: initial input scale, [1]; None unless static.
        input_log_scale: learned, [1], as ``weight_log_scale``.
        input_zero_point: [1] int32; None unless static.
        smoothing_scale: [in_features]; None without smoothing.
    """

    weight: Any  # typed differently by nn.Linear and Conv1D
    bias: Any
    spec: dict[str, Any]
    weight_scale: Tensor | None
    weight_log_scale: nn.Parameter | None
    input_scale: Tensor | None
    input_log_scale: nn.Parameter | None
    input_zero_point: Tensor | None
    smoothing_scale: Tensor | None

    def adopt_(self, module: Any, spec: Mapping[str, Any], *, learn_weight_scale: bool) -> None:
        """Take over a layer's parameters, the same objects, and add unset quantization ones."""
        self.weight, self.bias, self.spec = module.weight, module.bias, dict(spec)
        self.train(module.training)
        weight, static = self.weight, spec["activations"] == "static"
        weight_size = spec["out_features"] if static and learn_weight_scale else None
        for name, size in (("weight", weight_size), ("input", 1 if static else None)):
            scale = log_scale = None
            if size is not None:
                scale = weight.new_ones(size)
                log_scale = nn.Parameter(weight.new_zeros(size))
            self.register_buffer(f"{name}_scale", scale)
            self.register_parameter(f"{name}_log_scale", log_scale)
        zero_point = torch.zeros(1, dtype=torch.int32, device=weight.device)
        self.register_buffer("input_zero_point", zero_point if static else None)
        smoothing = weight.new_ones(spec["in_features"]) if spec["smoothing"] else None
        self.register_buffer("smoothing_scale", smoothing)

    def forward(self, inputs: Tensor) -> Tensor:
        """[..., in_features] to [..., out_features]."""
        weight = linear_weight(self)
        return fake_quantized_linear(
            self.quantized(), inputs, weight, self.bias, *self.learned_scales()
        )

    def learned_scales(self) -> tuple[Tensor | None, Tensor | None]:
        """The learned scales of weights, [out_features, 1], and of inputs, [1]; None if none."""
        weight_scale = input_scale = None
        if self.weight_scale is not None and self.weight_log_scale is not None:
            weight_scale = (self.weight_scale * self.weight_log_scale.exp()).unsqueeze(1)
        if self.input_scale is not None and self.input_log_scale is not None:
            input_scale = self.input_scale * self.input_log_scale.exp()
        return weight_scale, input_scale

    @torch.no_grad()
    def quantized(self) -> QuantizedLinear:
        """The quantized module with the same outputs."""
        made = QuantizedLinear(**self.spec).to(self.weight.device)
        made.bias = self.bias
        if made.smoothing_scale is not None and self.smoothing_scale is not None:
            made.smoothing_scale.copy_(self.smoothing_scale)
        scale, input_scale = self.learned_scales()
        pack_weights_(
            made,
            linear_weight(self),
            scale=scale,
            input_scale=input_scale,
            input_zero_point=self.input_zero_point,
        )
        return made.train(self.training)


class FakeQuantLinear(_FakeQuantizedLayer, nn.Linear):
    """Fake-quantized ``nn.Linear`` with the same parameters under the same names.

    Args:
        module: the layer whose parameters it takes over.
        spec: of the quantized module that it becomes.
        learn_weight_scale: whether static precisions learn the scale of the weight; not of one
            that is shared and has its scale learned by another layer.
    """

    def __init__(self, module: nn.Linear, spec: Mapping[str, Any], *, learn_weight_scale: bool):
        with torch.device("meta"):  # its own parameters are replaced, and draw no random numbers
            nn.Linear.__init__(self, module.in_features, module.out_features)
        self.adopt_(module, spec, learn_weight_scale=learn_weight_scale)


class FakeQuantConv1D(_FakeQuantizedLayer, Conv1D):
    """Fake-quantized ``Conv1D`` of GPT-2; see :class:`FakeQuantLinear`."""

    def __init__(self, module: Conv1D, spec: Mapping[str, Any], *, learn_weight_scale: bool):
        with torch.device("meta"):
            Conv1D.__init__(self, module.nf, module.nx)
        self.adopt_(module, spec, learn_weight_scale=learn_weight_scale)


class FakeQuantEmbedding(nn.Embedding):
    """Fake-quantized ``nn.Embedding`` with the same parameter under the same name."""

    def __init__(self, module: nn.Embedding, spec: Mapping[str, Any]):
        with torch.device("meta"):
            super().__init__(module.num_embeddings, module.embedding_dim, module.padding_idx)
        factor = embedding_factor(module)
        assert factor is not None  # other embeddings are not selected
        self.weight, self.spec, self.factor = module.weight, dict(spec), factor
        self.train(module.training)

    def forward(self, ids: Tensor) -> Tensor:
        """[...] to [..., embedding_dim]."""
        rows = functional.embedding(ids, self.weight, self.padding_idx)
        return fake_quantize_per_row(rows, self.spec["bits"], self.factor)

    def quantized(self) -> QuantizedEmbedding:
        """The quantized module with the same outputs."""
        return embedding_from_float(self, self.spec["bits"], self.factor)


FakeQuantized = FakeQuantLinear | FakeQuantConv1D | FakeQuantEmbedding


def fake_quantized(
    module: nn.Module, spec: Mapping[str, Any], *, learn_weight_scale: bool = True
) -> FakeQuantized:
    """Make the fake-quantized layer of a floating-point one; its quantization scales are unset.

    Args:
        module: an ``nn.Linear``, ``Conv1D`` or ``nn.Embedding``, whose parameters it takes over.
        spec: of the quantized module that it becomes.
        learn_weight_scale: see :class:`FakeQuantLinear`.
    """
    if isinstance(module, nn.Embedding):
        return FakeQuantEmbedding(module, spec)
    if isinstance(module, Conv1D):
        return FakeQuantConv1D(module, spec, learn_weight_scale=learn_weight_scale)
    assert isinstance(module, nn.Linear)
    return FakeQuantLinear(module, spec, learn_weight_scale=learn_weight_scale)


def fake_quantized_specs(model: nn.Module) -> dict[str, dict[str, Any]]:
    """The arguments of :func:`fake_quantized` for each such layer, by name, as plain data."""
    return {
        name: {
            "spec": dict(module.spec),
            "learn_weight_scale": getattr(module, "weight_log_scale", None) is not None,
        }
        for name, module in model.named_modules()
        if isinstance(module, FakeQuantized)
    }


def place_fake_quantized_(model: nn.Module, specs: Mapping[str, Mapping[str, Any]]) -> None:
    """Give a model the layers of :func:`fake_quantized_specs`, in place; parameters stay."""
    for name, arguments in specs.items():
        module = model.get_submodule(name)
        if not isinstance(module, FakeQuantized):
            model.set_submodule(name, fake_quantized(module, **arguments))


FAKE_QUANTIZED = StatePart("fake_quantized", fake_quantized_specs, place_fake_quantized_)


@torch.no_grad()
def convert_(model: nn.Module) -> None:
    """Replace fake-quantized layers by the quantized ones with the same outputs, in place.

    Raises:
        InputError: the model has no fake-quantized layers.
    """
    if not is_prepared(model):
        raise InputError(
            f"{type(model).__name__} has no fake-quantized layers: call prepare_ before convert_"
        )
    layers = {n: module for n, module in model.named_modules() if isinstance(module, FakeQuantized)}
    made = {name: layer.quantized() for name, layer in layers.items()}
    owners: dict[Tensor, str] = {}
    for name, layer in layers.items():
        made[name].weight = made[owners.setdefault(layer.weight, name)].weight
    for name, module in made.items():
        model.set_submodule(name, module)
    set_manifest_(
        model,
        [
            {**edit, "edit": QUANTIZATION_EDIT} if edit["edit"] == PREPARATION_EDIT else edit
            for edit in manifest_of(model)
        ],
    )


def log_scales_of(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that learn the scales of fake-quantized layers."""
    layers = [one for one in model.modules() if isinstance(one, _FakeQuantizedLayer)]
    pairs = [(layer.weight_log_scale, layer.input_log_scale) for layer in layers]
    return [parameter for pair in pairs for parameter in pair if parameter is not None]


def is_prepared(model: nn.Module) -> bool:
    """Whether the layers of a model are fake-quantized."""
    return bool(edits_of(model, PREPARATION_EDIT))
