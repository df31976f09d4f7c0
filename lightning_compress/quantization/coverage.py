"""Which modules of a model are quantized, and why the others are not."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from lightning_compress.errors import InputError
from lightning_compress.models.manifest import QUANTIZATION_EDIT, edits_of
from lightning_compress.models.structure import output_dim
from lightning_compress.quantization.modules import Quantized

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SKIPPED_BY_NAME = "named in skip_modules"


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
    floats = sum(p.numel() for p in model.parameters() if p.is_floating_point())
    skipped = edits[0]["skipped"] if edits else {}
    return Coverage(quantized, dict(skipped), count / (count + floats))


@dataclass(frozen=True)
class Selection:
    """The modules of a floating-point model that quantization replaces.

    Args:
        linear: names of linear layers.
        embeddings: names of embeddings.
        skipped: why another module with parameters is not quantized, by its name.
    """

    linear: list[str]
    embeddings: list[str]
    skipped: dict[str, str]


def modules_to_quantize(model: "PreTrainedModel", skip_modules: Sequence[str]) -> Selection:
    """Select all linear layers but the classifier's last, and all embeddings.

    A weight that is shared with a skipped module is skipped too.

    Args:
        model: a floating-point transformer.
        skip_modules: names of modules that are skipped, with all that is in them.

    Raises:
        InputError: the model has no module of a name in ``skip_modules``.
    """
    from transformers.pytorch_utils import Conv1D

    modules = dict(model.named_modules())
    missing = [name for name in skip_modules if name not in modules]
    if missing:
        raise InputError(f"skip_modules: {type(model).__name__} has no module {missing[0]!r}")
    linear, embeddings, skipped = [], [], {}
    for name, module in modules.items():
        if not isinstance(module, nn.Linear | Conv1D | nn.Embedding):
            if next(module.parameters(recurse=False), None) is not None:
                skipped[name] = f"{type(module).__name__}: no weight matrix"
        elif any(name == one or name.startswith(f"{one}.") for one in skip_modules):
            skipped[name] = SKIPPED_BY_NAME
        elif isinstance(module, nn.Embedding):
            embeddings.append(name)
        elif _is_classifier(model, name, module):
            skipped[name] = "classifier: small, and sensitive to quantization"
        else:
            linear.append(name)
    weights = {modules[name].weight: name for name in skipped if hasattr(modules[name], "weight")}
    for names in (linear, embeddings):
        for name in [name for name in names if modules[name].weight in weights]:
            names.remove(name)
            skipped[name] = f"shares its weight with {weights[modules[name].weight]}"
    return Selection(linear, embeddings, skipped)


def _is_classifier(model: "PreTrainedModel", name: str, module: nn.Module) -> bool:
    """Whether a layer outside the base model has one output per label."""
    outside = not name.startswith(f"{model.base_model_prefix}.")
    outputs = module.weight.shape[output_dim(module)]  # type: ignore[index]
    return outside and outputs == model.config.num_labels
