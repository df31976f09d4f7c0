"""What of a model is quantized, and what is not.

The edit that quantizes a model.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lightning_compress.errors import InputError
from lightning_compress.models.manifest import (
    QUANTIZATION_EDIT,
    manifest_of,
    require_float,
    set_manifest_,
)
from lightning_compress.models.modeling_compressed import put_
from lightning_compress.models.modeling_quantized import QuantizedEmbedding, QuantizedLinear
from lightning_compress.models.structure import output_dim
from lightning_compress.quantization.activation_stats import (
    Seen,
    input_grid,
    observe,
    smoothing_factor,
)
from lightning_compress.quantization.modules import cast_as_recorded_, fill_, quantized_embedding
from lightning_compress.quantization.schemes import (
    Observer,
    Options,
    Scheme,
    needs_examples,
    scheme_named,
)
from lightning_compress.types import Batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Coverage:
    """What of a model is quantized.

    Args:
        quantized: number of weights, by name of the module; of the parameter if all is cast.
        kept: why a module with weights is not, by its name.
        share: of all parameters that are quantized, in [0, 1]; shared ones count once.
    """

    quantized: dict[str, int]
    kept: dict[str, str]
    share: float


def coverage_of(model: nn.Module) -> Coverage:
    """What of a model is quantized; nothing of one that is not."""
    edits = [edit for edit in manifest_of(model) if edit["edit"] == QUANTIZATION_EDIT]
    if edits and "dtype" in edits[0]:
        return Coverage({name: p.numel() for name, p in model.named_parameters()}, {}, 1.0)
    made = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, QuantizedLinear | QuantizedEmbedding)
    }
    quantized = {name: module.count() for name, module in made.items()}
    within = sum({module.weight: module.count() for module in made.values()}.values())
    rest = sum(p.numel() for p in model.parameters() if p.is_floating_point())
    kept = edits[0]["kept"] if edits else {}
    return Coverage(quantized, dict(kept), within / (within + rest))


@torch.no_grad()
def quantize_(
    model: "PreTrainedModel",
    scheme: str,
    *,
    calibration: Sequence[Batch] = (),
    group: int = 32,
    observer: Observer = "mse",
    smooth: float | None = None,
    symmetric: bool = False,
    keep: Collection[str] = (),
    technique: str = QUANTIZATION_EDIT,
) -> Coverage:
    """Quantize a Hugging Face transformer, in place.

    All linear layers but the one that decides on the classes, and all embeddings (in eight bits,
    row by row); what else there is (norms, biases) stays in floating point. A weight that is shared
    stays shared.

    Args:
        model: a transformer.
        scheme: ``bf16``, ``fp16``, ``int8-weight``, ``int4-weight``, ``int8-dynamic`` or
            ``int8-static``.
        calibration: batches of examples, as the model takes them, to find the steps of
            ``int8-static`` and the factors of ``smooth`` on.
        group: how many weights of four bits share a step.
        observer: how the steps of ``int8-static`` are found: ``minmax``, ``percentile``, ``mse``.
        smooth: strength of SmoothQuant, between 0 and 1; None: none.
        symmetric: whether the steps of ``int8-static`` are counted from zero, as TensorRT needs it.
        keep: names of modules that stay in floating point.
        technique: what asked for it; the report names it.

    Returns:
        What is quantized, and what is not.

    Raises:
        InputError: there is no such scheme, the model is quantized already, a name in ``keep`` is
            not there, the group does not divide a layer's inputs, there are no calibration
            examples, or what goes into a layer is not finite. The model is then unchanged.
    """
    chosen, options = scheme_named(scheme), Options(group, observer, smooth, symmetric, keep)
    check_quantization(model, scheme, options)
    if chosen.dtype is not None:
        dtype = str(chosen.dtype).removeprefix("torch.")
        _record_(model, {"scheme": scheme, "technique": technique, "dtype": dtype})
        cast_as_recorded_(model, manifest_of(model))
        return coverage_of(model)
    made, kept = quantized_parts(model, scheme, calibration, options)
    for name, module in made.items():
        put_(model, name, module)
    _record_(model, {"scheme": scheme, "technique": technique, "kept": kept})
    return coverage_of(model)


def check_quantization(model: "PreTrainedModel", scheme: str, options: Options) -> None:
    """See that a model can be quantized, as far as that shows without examples.

    Raises:
        InputError: it cannot, as of :func:`quantize_`.
    """
    require_float(model, "quantize the model that it came from")
    linear, _, _ = _parts(model, options.keep)
    if scheme_named(scheme).bits == 4:
        _check_group(model, linear, options.group)


@torch.no_grad()
def quantized_parts(
    model: "PreTrainedModel", scheme: str, calibration: Sequence[Batch], options: Options
) -> tuple[dict[str, QuantizedLinear | QuantizedEmbedding], dict[str, str]]:
    """The modules that :func:`quantize_` puts into a model, by name, and why others stay.

    Arguments and errors are the same; ``scheme`` is one of whole numbers.
    """
    chosen, smooth = scheme_named(scheme), options.smooth
    linear, embeddings, kept = _parts(model, options.keep)
    seen: Mapping[str, Seen] = {}
    if needs_examples(scheme, options):
        if not calibration:
            what = scheme if smooth is None else "smooth"
            raise InputError(f"{what} needs calibration examples, of the training split: give some")
        seen = observe(model, linear, calibration)
    made: dict[str, QuantizedLinear | QuantizedEmbedding] = {
        name: quantized_embedding(model.get_submodule(name)) for name in embeddings
    }
    shared = _shared(model, embeddings)
    for name in linear:
        owner = shared.get(name)
        made[name] = _linear(
            model.get_submodule(name),
            chosen if owner is None else Scheme(8, chosen.activations),
            options.group if chosen.bits == 4 and owner is None else 0,
            seen.get(name),
            smooth if owner is None else None,
            options,
        )
        if owner is not None:
            made[name].weight = made[owner].weight
    return made, kept


def _parts(
    model: "PreTrainedModel", keep: Collection[str]
) -> tuple[list[str], list[str], dict[str, str]]:
    """Linear layers, embeddings, and what stays as it is and why."""
    from transformers.pytorch_utils import Conv1D

    modules = dict(model.named_modules())
    missing = [name for name in keep if name not in modules]
    if missing:
        raise InputError(f"keep: {type(model).__name__} has no module {missing[0]!r}")
    linear, embeddings, kept = [], [], {}
    for name, module in modules.items():
        if not isinstance(module, nn.Linear | Conv1D | nn.Embedding):
            if next(module.parameters(recurse=False), None) is not None:
                kept[name] = f"{type(module).__name__}: no matrix that is multiplied with"
        elif any(name == one or name.startswith(f"{one}.") for one in keep):
            kept[name] = "asked for"
        elif isinstance(module, nn.Embedding):
            embeddings.append(name)
        elif _decides(model, name, module):
            kept[name] = "the layer that decides: small, and errors show"
        else:
            linear.append(name)
    weights = {modules[name].weight: name for name in kept if hasattr(modules[name], "weight")}
    for names in (linear, embeddings):
        for name in [name for name in names if modules[name].weight in weights]:
            names.remove(name)
            kept[name] = f"its weight is also that of {weights[modules[name].weight]}"
    return linear, embeddings, kept


def _decides(model: "PreTrainedModel", name: str, module: nn.Module) -> bool:
    """Whether a layer gives the classes: in the head, with as many outputs as there are labels."""
    head = not name.startswith(f"{model.base_model_prefix}.")
    outputs = module.weight.shape[output_dim(module)]  # type: ignore[index]
    return head and outputs == model.config.num_labels


def _check_group(model: nn.Module, linear: list[str], group: int) -> None:
    for name in linear:
        inputs = _matrix(model.get_submodule(name)).shape[1]
        if inputs % group:
            raise InputError(
                f"group: {group} does not divide the {inputs} inputs of {name}; choose one that "
                "does, or name the layer in keep"
            )


def _shared(model: nn.Module, embeddings: list[str]) -> dict[str, str]:
    """Linear layers whose weight is that of an embedding, and which."""
    owners = {model.get_submodule(name).weight: name for name in embeddings}
    return {
        name: owners[module.weight]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.weight in owners
    }


def _matrix(module: nn.Module) -> Tensor:
    """The weight of a linear layer, [outputs, inputs]."""
    weight: Any = module.weight
    return weight if output_dim(module) == 0 else weight.t()  # type: ignore[no-any-return]


def _linear(
    module: Any,
    scheme: Scheme,
    group: int,
    seen: Seen | None,
    smooth: float | None,
    options: Options,
) -> QuantizedLinear:
    weight = _matrix(module)
    outputs, inputs = weight.shape
    made = QuantizedLinear(
        inputs, outputs, bits=scheme.bits, group=group, activations=scheme.activations,
        smooth=smooth is not None, bias=module.bias is not None,
    ).to(weight.device)  # fmt: skip
    made.bias = module.bias  # that of a language model's head is shared
    if made.factor is not None and smooth is not None and seen is not None:
        largest = seen.largest.maximum(-seen.smallest)
        made.factor.copy_(smoothing_factor(weight.float(), largest, smooth))
        seen = seen.scaled(made.factor)
    step = zero = None
    if scheme.activations == "static":
        assert seen is not None  # quantize_ has seen to it
        step, zero = input_grid(seen, options.observer, symmetric=options.symmetric)
    fill_(made, weight, input_step=step, input_zero=zero)
    return made.train(module.training)


def _record_(model: nn.Module, edit: dict[str, Any]) -> None:
    set_manifest_(model, [*manifest_of(model), {"edit": QUANTIZATION_EDIT, **edit}])
