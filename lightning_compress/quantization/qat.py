"""Quantization-aware training: layers that round while they learn."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_compress.errors import InputError
from lightning_compress.models.manifest import (
    PREPARATION_EDIT,
    QUANTIZATION_EDIT,
    manifest_of,
    set_manifest_,
)
from lightning_compress.models.modeling_quantized import QuantizedLinear
from lightning_compress.quantization.fake_quantized import round_
from lightning_compress.quantization.quantize import check_quantization, quantized_parts
from lightning_compress.quantization.schemes import Options, scheme_named
from lightning_compress.types import Batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@torch.no_grad()
def prepare_(
    model: "PreTrainedModel",
    scheme: str,
    options: Options,
    *,
    calibration: Sequence[Batch] = (),
    technique: str = QUANTIZATION_EDIT,
) -> None:
    """Let the layers of a model round as they will once it is quantized, in place.

    From here on the model says what the quantized one would say, to the last bit, and can be
    trained, and at the end :func:`~lightning_compress.models.rounded.convert_` makes it that one.
    Parameters keep their names. ``int8-static`` also learns its steps, by new parameters of each
    layer, see :class:`~lightning_compress.models.rounded.RoundedLinear`.

    Args:
        model: a transformer.
        scheme: one of whole numbers, as of :func:`~.quantizing.quantize_`.
        options: of the scheme.
        calibration: batches of examples, as of :func:`~.quantizing.quantize_`.
        technique: what asked for it; the report names it.

    Raises:
        InputError: as of :func:`~.quantizing.quantize_`, or the scheme is of sixteen bits. The
            model is then unchanged.
    """
    check_preparation(model, scheme, options)
    made, kept = quantized_parts(model, scheme, calibration, options)
    owned: set[Tensor] = set()
    for name, module in made.items():
        layer: Any = model.get_submodule(name)
        round_(layer, module.spec(), own_weight=layer.weight not in owned)
        owned.add(layer.weight)
        if not isinstance(module, QuantizedLinear):
            continue
        if module.factor is not None:
            layer.factor.copy_(module.factor)
        if module.activations == "static":
            if hasattr(layer, "weight_step"):
                layer.weight_step.copy_(module.step.view(-1))
            layer.input_step.copy_(module.input_step)
            layer.input_zero.copy_(module.input_zero)
    edit = {"edit": PREPARATION_EDIT, "scheme": scheme, "technique": technique, "kept": kept}
    set_manifest_(model, [*manifest_of(model), edit])


def check_preparation(model: "PreTrainedModel", scheme: str, options: Options) -> None:
    """See that a model can be prepared, as far as that shows without examples.

    Raises:
        InputError: it cannot, as of :func:`prepare_`.
    """
    if scheme_named(scheme).dtype is not None:
        raise InputError(
            f"{scheme} has nothing to learn: train with trainer.precision bf16-mixed or 16-mixed, "
            "and quantize the result"
        )
    check_quantization(model, scheme, options)
