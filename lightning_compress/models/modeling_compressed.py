"""Hugging Face models whose layers differ in size, as written by lightning_compress.

This file needs torch and transformers only. It lies in the folder of every model that transformers
alone cannot build, and ``AutoModelFor....from_pretrained(folder, trust_remote_code=True)`` finds it
there. ``compressed_sizes`` in ``config.json`` says what differs, by the name of the module:
``{"bert.encoder.layer.0.output.dense": {"in_features": 512, "out_features": 256}}``.
"""

import torch
import transformers
from torch import nn
from transformers.pytorch_utils import Conv1D


def resize_(model: nn.Module, sizes: dict[str, dict[str, int]]) -> None:
    """Give modules other sizes, in place; the weights of linear layers are new and unset.

    Args:
        model: the model.
        sizes: values of attributes by their name, by the name of the module. Those of a linear
            layer are its number of inputs and of outputs.

    Raises:
        AttributeError: the model has no module of that name.
    """
    for name, attributes in sizes.items():
        module = model.get_submodule(name)
        for attribute, value in attributes.items():
            setattr(module, attribute, value)
        if isinstance(module, nn.Linear):
            _reset_(module, (module.out_features, module.in_features), module.out_features)
        elif isinstance(module, Conv1D):
            _reset_(module, (module.nx, module.nf), module.nf)


def _reset_(module: nn.Module, shape: tuple[int, int], outputs: int) -> None:
    for name, size in (("weight", shape), ("bias", (outputs,))):
        old = getattr(module, name)
        if old is not None and old.shape != torch.Size(size):
            new = nn.Parameter(old.detach().new_zeros(size), requires_grad=old.requires_grad)
            setattr(module, name, new)


def compressed_class(base: type) -> type:
    """The class of the same name whose models have the sizes that their configuration gives."""

    class Compressed(base):  # type: ignore[misc]  # the base is known only at run time
        def __init__(self, config, *args, **kwargs):  # type: ignore[no-untyped-def]
            super().__init__(config, *args, **kwargs)
            resize_(self, getattr(config, "compressed_sizes", {}))

    # The same name, for transformers writes it into config.json.
    Compressed.__name__ = Compressed.__qualname__ = base.__name__
    return Compressed


def __getattr__(name: str) -> type:
    base = getattr(transformers, name, None)
    if not isinstance(base, type):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = compressed_class(base)
    return found
