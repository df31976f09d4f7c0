"""Which modules of a model quantization replaces, and why not the others.

A module is replaced only if all that the model does with it is known: its class is one whose
forward pass the quantized module computes, and no other code of the model reads its weight, which
would find integers. All other modules stay in floating point.
"""

import inspect
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from torch import nn

from lightning_compress.errors import InputError
from lightning_compress.models.structure import (
    COMPUTED_WEIGHT,
    has_computed_weight,
    output_dim,
)
from lightning_compress.quantization.modules import embedding_factor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SKIPPED_BY_NAME = "named in skip_modules"

_ADAPTER = "adapter of PEFT: call merge_and_unload() before quantizing"
# self.lm_head.weight where it is read; its device is the same of a quantized weight.
_READ = re.compile(r"\b(\w+)((?:\.[A-Za-z_]\w*)+)\.weight\b(?!\.device\b)(?!\s*=[^=])")
# Functions that run only while a model is built or resized.
_BUILDING = re.compile(r"__init__|init_weights|reset_parameters|tie_weights|resize")


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
    """Select the linear layers but the classifier's last, and the embeddings.

    Not those whose class is unknown, whose weight the model's own code reads, or whose weight is
    computed from other tensors. A weight that is shared with a skipped module is skipped too.

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
    elsewhere = _used_elsewhere(model)
    linear, embeddings, skipped = [], [], {}
    for name, module in modules.items():
        if not isinstance(module, nn.Linear | Conv1D | nn.Embedding):
            parameters = list(module.parameters(recurse=False))
            if parameters:
                matrix = any(parameter.dim() > 1 for parameter in parameters)
                what = "neither a linear layer nor an embedding" if matrix else "no weight matrix"
                skipped[name] = f"{type(module).__name__}: {what}"
        elif any(name == one or name.startswith(f"{one}.") for one in skip_modules):
            skipped[name] = SKIPPED_BY_NAME
        elif name in elsewhere or (reason := _unknown(module)) is not None:
            skipped[name] = elsewhere.get(name) or reason or ""
        elif isinstance(module, nn.Embedding):
            embeddings.append(name)
        elif _is_classifier(model, name, module):
            skipped[name] = "classifier: small, and sensitive to quantization"
        else:
            linear.append(name)
    selected = {modules[name].weight for name in (*linear, *embeddings)}
    if linear and selected.issuperset(model.parameters()):
        smallest = min(linear, key=lambda name: modules[name].weight.numel())
        linear.remove(smallest)
        skipped[smallest] = (
            "transformers needs one floating-point parameter, and it is the smallest"
        )
    weights = {weight: n for n in skipped for weight in modules[n].parameters(recurse=False)}
    for names in (linear, embeddings):
        for name in [name for name in names if modules[name].weight in weights]:
            names.remove(name)
            skipped[name] = f"shares its weight with {weights[modules[name].weight]}"
    return Selection(linear, embeddings, skipped)


def _unknown(module: nn.Module) -> str | None:
    """Why it is not known what a linear layer or an embedding computes; None if it is."""
    from transformers.pytorch_utils import Conv1D

    kind = type(module)
    if has_computed_weight(module):
        return COMPUTED_WEIGHT
    if isinstance(module, nn.Embedding):
        known = embedding_factor(module) is not None
    else:
        # Falcon's adds the bias in a step of its own.
        known = kind in (nn.Linear, Conv1D) or kind.__name__ == "FalconLinear"
    return None if known else f"{kind.__name__}: its forward pass is unknown"


def _used_elsewhere(model: nn.Module) -> dict[str, str]:
    """Which modules of a model, by name, its code uses otherwise than by calling them, and how."""
    found: dict[str, str] = {}
    uses = Counter(module for _, module in model.named_modules(remove_duplicate=False))
    for name, module in model.named_modules():
        prefix, kind = f"{name}." if name else "", type(module)
        for root, path in _weights_read_by(kind):  # type: ignore[arg-type]  # classes are hashable
            # What another variable holds, such as a block in a loop, is known by its end only.
            inside = [f"{prefix}{n}" for n, _ in module.named_modules() if f".{n}".endswith(path)]
            names = [prefix + path[1:]] if root == "self" else inside
            found |= dict.fromkeys(names, f"{kind.__name__} reads its weight")
        if "base_layer" in module._modules:
            found |= {f"{prefix}{inside}": _ADAPTER for inside, _ in module.named_modules()}
        if uses[module] > 1:
            found[name] = "the model has it under several names"
    return found


@cache
def _weights_read_by(kind: type) -> frozenset[tuple[str, str]]:
    """Whose weight the code of a class of modules reads itself: variables and paths in them."""
    # The base classes of transformers read the weights of all models, to build and resize them.
    bases = [b for b in kind.__mro__ if not re.match(r"transformers\.(?!models\.)", b.__module__)]
    functions = [
        function.fget if isinstance(function, property) else inspect.unwrap(function)
        for base in bases
        for name, function in vars(base).items()
        if (inspect.isfunction(function) or isinstance(function, property))
        and not _BUILDING.search(name)
    ]
    sources = [_source_of(function) for function in functions]
    return frozenset(found for source in sources for found in _READ.findall(source))


@cache
def _source_of(function: object) -> str:
    try:
        return inspect.getsource(function)  # type: ignore[arg-type]
    except (OSError, TypeError):  # a class that was made without a file
        return ""


def _is_classifier(model: "PreTrainedModel", name: str, module: nn.Module) -> bool:
    """Whether a layer outside the base model has one output per label."""
    outside = not name.startswith(f"{model.base_model_prefix}.")
    outputs = module.weight.shape[output_dim(module)]  # type: ignore[index]
    return outside and outputs == model.config.num_labels
