"""The weights that magnitude pruning prunes: those of the blocks' linear layers, or by pattern."""

from fnmatch import fnmatchcase

from torch import nn

from lightning_compress.errors import InputError
from lightning_compress.models import structure_of

_SHOWN = 20  # names listed in an error


def prunable_weights(model: nn.Module, patterns: list[str] | None) -> list[str]:
    """Names of the parameters to prune, relative to ``model``.

    Args:
        model: any module; a Hugging Face transformer of a known family if ``patterns`` is None.
        patterns: shell patterns on parameter names, such as ``*.attention.*.weight``. None selects
            the weights of the linear layers of the blocks, without embeddings, norms, biases and
            the classifier.

    Raises:
        InputError: a pattern matches nothing, or the model is of no known family.
    """
    if patterns is None:
        return [f"{layer}.weight" for layer in structure_of(model).linear_names()]
    names = [name for name, _ in model.named_parameters()]
    idle = [pattern for pattern in patterns if not any(fnmatchcase(n, pattern) for n in names)]
    if idle or not patterns:
        listed = "\n  ".join(names[:_SHOWN])
        more = f"\n  and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        raise InputError(
            f"weights: {', '.join(map(repr, idle)) or 'an empty list'} matches no parameter of "
            f"{type(model).__name__}, which has:\n  {listed}{more}"
        )
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def input_dims(model: nn.Module, names: list[str], multiple: int) -> dict[str, int]:
    """The input dimension of each weight, 0 or 1, for n:m patterns.

    Raises:
        InputError: a weight belongs to no linear layer, or the number of inputs is no multiple of
            ``multiple``.
    """
    from transformers.pytorch_utils import Conv1D

    dims = {}
    for name in names:
        module = model.get_submodule(name.rpartition(".")[0])
        if not name.endswith("weight") or not isinstance(module, nn.Linear | Conv1D):
            raise InputError(f"pattern: {name} is no weight of a linear layer; leave it out")
        dims[name] = 0 if isinstance(module, Conv1D) else 1
        inputs = module.weight.shape[dims[name]]
        if inputs % multiple:
            raise InputError(
                f"pattern: {name} has {inputs} inputs, which is not a multiple of {multiple}; "
                "leave it out with weights, or choose another pattern"
            )
    return dims
