"""Quantize a model, or a copy of one: which of its modules, and why not the others."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from lightning_compress.errors import InputError
from lightning_compress.models.manifest import QUANTIZATION_EDIT, edits_of
from lightning_compress.models.modeling_quantized import weights_of
from lightning_compress.quantization.cast import cast_, check_cast
from lightning_compress.quantization.modules import Quantized

if TYPE_CHECKING:
    from transformers import PreTrainedModel
import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_compress.models.manifest import (
    manifest_of,
    require_float,
    set_manifest_,
)
from lightning_compress.quantization.activation_stats import (
    ActivationStats,
    collect_activation_stats,
)
from lightning_compress.quantization.modules import (
    embedding_from_float,
    linear_from_float,
    linear_weight,
)
from lightning_compress.quantization.precisions import (
    PrecisionName,
    QuantizationConfig,
    config_from,
    own_precision,
)
from lightning_compress.quantization.selection import modules_to_quantize
from lightning_compress.types import Batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Coverage:
    """How much of a model is quantized.

    Args:
        quantized: number of weights by name of the quantized module; by name of the parameter if
            the whole model is cast.
        skipped: why a module with parameters is not quantized, by its name.
        quantized_fraction: of all parameters, in [0, 1]; shared ones count once.
    """

    quantized: dict[str, int]
    skipped: dict[str, str]
    quantized_fraction: float


def coverage_of(model: nn.Module) -> Coverage:
    """How much of a model is quantized; nothing of one that is not."""
    edits = edits_of(model, QUANTIZATION_EDIT)
    if edits and "dtype" in edits[0]:
        return Coverage({name: p.numel() for name, p in model.named_parameters()}, {}, 1.0)
    modules = {n: module for n, module in model.named_modules() if isinstance(module, Quantized)}
    quantized = {name: module.weight_count() for name, module in modules.items()}
    count = sum({module.weight: module.weight_count() for module in modules.values()}.values())
    floats = sum(p.numel() for p in weights_of(model) if p.is_floating_point())
    skipped = edits[0]["skipped"] if edits else {}
    return Coverage(quantized, dict(skipped), count / (count + floats))


@torch.no_grad()
def quantize_(
    model: "PreTrainedModel",
    config: PrecisionName | QuantizationConfig,
    *,
    calibration_batches: Sequence[Batch] = (),
    technique: str = QUANTIZATION_EDIT,
) -> Coverage:
    """Quantize a Hugging Face transformer, in place.

    All linear layers but the classifier's last, and all embeddings (int8, one scale per row);
    norms and biases stay in floating point. Shared weights stay shared.

    Args:
        model: a transformer.
        config: a scheme by name (``bf16``, ``fp16``, ``int8-weight``, ``int4-weight``,
            ``int8-dynamic``, ``int8-static``), or all options.
        calibration_batches: training examples as the model takes them, ``input_ids`` [B, S] and
            what else; needed for ``int8-static`` and for ``smooth_alpha``.
        technique: name of the edit in the report.

    Returns:
        What is quantized, and what is not.

    Raises:
        InputError: an option is out of range, the model is quantized already, it has no module of
            a name in ``skip_modules``, ``group_size`` does not divide a layer's inputs, there are
            no calibration examples, or an activation is not finite. The model is then unchanged.
    """
    config = config_from(config)
    check_quantization(model, config)
    record: dict[str, Any] = {
        "edit": QUANTIZATION_EDIT,
        "scheme": config.scheme,
        "technique": technique,
    }
    if config.precision.dtype is not None:
        _check_range(model, config)
        check_cast(model, config.precision.dtype)
        record["dtype"] = str(config.precision.dtype).removeprefix("torch.")
        cast_(model, config.precision.dtype)
    else:
        modules, record["skipped"] = quantized_modules(model, config, calibration_batches)
        for name, module in modules.items():
            model.set_submodule(name, module)
        if any(p.dtype in (torch.float16, torch.bfloat16) for p in model.parameters()):
            cast_(model, torch.float32)  # what quantized modules give
    set_manifest_(model, [*manifest_of(model), record])
    return coverage_of(model)


def _check_range(model: nn.Module, config: QuantizationConfig) -> None:
    """Raise if a weight would become infinite."""
    dtype = config.precision.dtype
    assert dtype is not None  # of a scheme with 16 bits
    largest = torch.finfo(dtype).max
    for name, parameter in model.named_parameters():
        beyond = parameter.is_floating_point() and float(parameter.abs().max()) > largest
        if beyond and parameter.isfinite().all():
            raise InputError(
                f"{config.scheme}: {name} has values up to {float(parameter.abs().max()):.3g}, "
                f"beyond {largest:.5g}, which would become infinite: choose another scheme"
            )


def check_quantization(model: "PreTrainedModel", config: QuantizationConfig) -> None:
    """Check that a model can be quantized, before calibration examples are there.

    Raises:
        InputError: it cannot, see :func:`quantize_`.
    """
    require_float(model, "quantize the model that it came from")
    selection = modules_to_quantize(model, config.skip_modules)
    if config.precision.weight_bits == 4:
        _check_group_size(model, selection.linear, config.group_size)


@torch.no_grad()
def quantized_modules(
    model: "PreTrainedModel", config: QuantizationConfig, calibration_batches: Sequence[Batch]
) -> tuple[dict[str, Quantized], dict[str, str]]:
    """Make the modules that :func:`quantize_` puts into a model, which stays as it is.

    Args:
        model: a transformer.
        config: of a scheme with 8 or 4 bits.
        calibration_batches: see :func:`quantize_`.

    Returns:
        Quantized modules by name, and why others are skipped, by name.

    Raises:
        InputError: see :func:`quantize_`.
    """
    selection = modules_to_quantize(model, config.skip_modules)
    stats: dict[str, ActivationStats] = {}
    if config.needs_calibration:
        if not calibration_batches:
            what = config.scheme if config.smooth_alpha is None else "smooth_alpha"
            raise InputError(
                f"{what} needs calibration examples: pass calibration_batches of the training split"
            )
        stats = collect_activation_stats(model, selection.linear, calibration_batches)
    multiplied = {model.get_submodule(name).weight for name in selection.linear}
    made: dict[str, Quantized] = {}
    owners: dict[Tensor, str] = {}
    for name in selection.embeddings:
        embedding: Any = model.get_submodule(name)
        # A weight shared with a linear layer has the bits of its products, but is never packed.
        shared = embedding.weight in multiplied and config.weight_bits != 4
        made[name] = embedding_from_float(embedding, config.weight_bits if shared else 8)
        made[name].weight = made[owners.setdefault(embedding.weight, name)].weight
    for name in selection.linear:
        module: Any = model.get_submodule(name)
        owner = owners.get(module.weight)
        made[name] = linear_from_float(
            module,
            config,
            config.weight_bits if owner is None else made[owner].bits,
            stats=stats.get(name),
            # Smoothing would change the embedding.
            smooth_alpha=config.smooth_alpha if owner is None else None,
        )
        if owner is not None:
            made[name].weight = made[owner].weight
    return made, selection.skipped


def _check_group_size(model: nn.Module, linear: list[str], group_size: int) -> None:
    for name in linear:
        in_features = linear_weight(model.get_submodule(name)).shape[1]
        if in_features % group_size:
            raise InputError(
                f"group_size: {group_size} does not divide the {in_features} inputs of {name}; "
                "choose one that does, or name the layer in skip_modules"
            )


def in_precision(
    model: "PreTrainedModel",
    precision: str,
    device: str,
    calibration_batches: Sequence[Batch],
    *,
    symmetric: bool = False,
) -> "PreTrainedModel":
    """Copy a model to a device, in a precision.

    Args:
        model: stays as it is.
        precision: one of ``PRECISIONS``; of a quantized model its own.
        device: such as ``cpu``.
        calibration_batches: training examples, for static precisions.
        symmetric: fix the zero point of inputs at 0.

    Raises:
        InputError: the model cannot be in that precision; the message gives the reason.
    """
    made = copy.deepcopy(model)
    nn.Module.to(made, device=device)
    if precision == own_precision(model):
        return made
    cast_(made, torch.float32)
    if precision != "fp32":
        config = QuantizationConfig(precision, symmetric=symmetric)  # type: ignore[arg-type]  # it checks the name
        quantize_(made, config, calibration_batches=calibration_batches)
    return made
