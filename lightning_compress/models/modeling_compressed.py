"""Hugging Face models whose layers differ from those of their class, as lightning_compress saves.

This file needs torch, transformers and ``modeling_quantized.py`` only. Both lie in the folder of
every model that transformers alone cannot build, and
``AutoModelFor....from_pretrained(folder, trust_remote_code=True)`` finds them there. They read the
field ``compression`` of ``config.json``, by the names of the modules:

- ``sizes``: attributes that differ from the class's,
  ``{"bert.encoder.layer.0.output.dense": {"in_features": 512, "out_features": 256}}``;
- ``layers``: the ``count`` of layers that a text passes through, which are ``compact`` blocks,
  ``{"bert.encoder.layer.1": {"depth": 2, "norm": false, "narrow": {"hidden_size": 128, ...}}}``,
  and whether the layer in front is the ``first`` of the dense model, where that one differs;
- ``quantized``: the specifications of quantized modules,
  ``{"bert.pooler.dense": {"in_features": 256, "bits": 8, ...}}``.

The weights lie in ``model.compressed.safetensors``, a name that transformers' own classes do not
find: they would take some of the tensors for their own and fill the rest with random numbers.
"""

import copy
import inspect
from typing import Any

import torch
import transformers
from torch import nn
from transformers.pytorch_utils import Conv1D

from .modeling_quantized import QuantizedEmbedding, quantized_module

VARIANT = "compressed"
"""What the names of files with weights contain that only the classes of this file can read."""


def resize_(model: nn.Module, sizes: dict[str, dict[str, Any]]) -> None:
    """Give modules other sizes, in place; the weights of linear layers are new and unset.

    Args:
        model: the model.
        sizes: values of attributes by their name, by the name of the module. Those of a linear
            layer are its number of inputs and of outputs. ``kept_heads`` of attention are those
            that it takes of an argument with a bias for each head of the dense model: the
            ``argument``, its ``place`` among all, and the ``heads``.

    Raises:
        AttributeError: the model has no module of that name.
    """
    for name, attributes in sizes.items():
        module = model.get_submodule(name)
        for attribute, value in attributes.items():
            setattr(module, attribute, value)
        hooks = module._forward_pre_hooks.values()
        if attributes.get("kept_heads") is not None and _select_heads not in hooks:
            module.register_forward_pre_hook(_select_heads, with_kwargs=True)
        if isinstance(module, nn.Linear):
            _reset_(module, (module.out_features, module.in_features), module.out_features)
        elif isinstance(module, Conv1D):
            _reset_(module, (module.nx, module.nf), module.nf)


def _select_heads(attention, inputs, keywords):  # type: ignore[no-untyped-def]
    """Take the remaining heads of a bias [B, A, S, S] that all layers share."""
    if attention.kept_heads is None:  # a dense model's state was restored
        return None
    name, place, heads = (attention.kept_heads[key] for key in ("argument", "place", "heads"))
    if name in keywords:
        return inputs, {**keywords, name: keywords[name][:, heads]}
    return (*inputs[:place], inputs[place][:, heads], *inputs[place + 1 :]), keywords


class CompactBlock(nn.Module):
    """A narrow encoder between a down- and an up-projection, beside which the input passes on.

    ``h + up(norm(layers(down(h))))``. The layers are of the host's own class at the smaller width,
    so they take attention masks, caches and kernels as their neighbours do. The norm is there where
    the host's layers have theirs in front and so leave their sum as it comes.

    Args:
        layer: class of the host's layers.
        config: configuration of the host.
        depth: number of narrow layers.
        norm: whether there is a norm.
        narrow: fields of the configuration that differ in the narrow layers.
    """

    def __init__(self, layer, config, *, depth: int, norm: bool, narrow: dict[str, int]) -> None:  # type: ignore[no-untyped-def]
        super().__init__()
        self.shape = {"depth": depth, "norm": norm, "narrow": dict(narrow)}
        small = copy.deepcopy(config)
        for name, value in narrow.items():
            setattr(small, name, value)
        self.down = nn.Linear(config.hidden_size, small.hidden_size)
        self.layers = nn.ModuleList(new_layer(layer, small) for _ in range(depth))
        _take_config_(self.layers, small, config)
        self.norm = nn.LayerNorm(small.hidden_size) if norm else nn.Identity()
        self.up = nn.Linear(small.hidden_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor, *args, **kwargs) -> torch.Tensor:  # type: ignore[no-untyped-def]
        """[B, S, H] to [B, S, H]; the other arguments are those of the host's layers."""
        small = self.down(hidden_states)
        for layer in self.layers:
            small = layer(small, *args, **kwargs)
        found: torch.Tensor = hidden_states + self.up(self.norm(small))
        return found


def new_layer(
    layer: type, config: transformers.PreTrainedConfig, place: int = 0, *, first: bool = True
) -> nn.Module:
    """A layer of the host's class; :func:`number_` sets its index once all layers are built.

    Args:
        layer: the class.
        config: of the host.
        place: in ``config.layer_types``, if there is that field.
        first: whether it has what the class gives to the first layer only, or to the others.
    """
    if "layer_idx" not in inspect.signature(layer).parameters:
        plain: nn.Module = layer(config)
        return plain
    own = copy.deepcopy(config)
    types = getattr(config, "layer_types", None)
    if types is not None:
        own.layer_types = [types[place]] * 2
    made: nn.Module = layer(own, layer_idx=0 if first else 1)
    _take_config_(made, own, config)
    return made


def _take_config_(layers: nn.Module, own: object, config: object) -> None:
    """Give modules the host's configuration instead of their own.

    Once built they only ask how attention is computed, which the model is told later.
    """
    for module in layers.modules():
        if getattr(module, "config", None) is own:
            setattr(module, "config", config)  # noqa: B010  # mypy knows no such attribute


def number_(layers: nn.Module) -> None:
    """Number attention layers in the order in which they run, which is that of their caches."""
    inside = [module for module in layers.modules() if "layer_idx" in vars(module)]
    # A layer and its attention may both have an index; the outer module comes first.
    owners: list[nn.Module] = []
    for module in inside:
        if not any(module in set(owner.modules()) for owner in owners):
            owners.append(module)
    for index, owner in enumerate(owners):
        for module in owner.modules():
            if "layer_idx" in vars(module):
                setattr(module, "layer_idx", index)  # noqa: B010  # mypy knows no such attribute


def _reset_(module: nn.Module, shape: tuple[int, int], outputs: int) -> None:
    for name, size in (("weight", shape), ("bias", (outputs,))):
        old = getattr(module, name)
        if old is not None and old.shape != torch.Size(size):
            new = nn.Parameter(old.detach().new_zeros(size), requires_grad=old.requires_grad)
            setattr(module, name, new)


def compressed_class(base: type) -> type:
    """The class of the same name whose models have the sizes that their configuration gives."""

    class Compressed(base):  # type: ignore[misc]  # the base is known only at run time
        """The base's architecture in the sizes of ``config.json``."""

        def __init__(self, config, *args, **kwargs):  # type: ignore[no-untyped-def]
            super().__init__(config, *args, **kwargs)
            _compress_(self, config, getattr(config, "compression", {}))

        @classmethod
        def from_pretrained(cls, *args, **kwargs):  # type: ignore[no-untyped-def]
            return super().from_pretrained(*args, **{**kwargs, "variant": VARIANT})

        def save_pretrained(self, *args, **kwargs):  # type: ignore[no-untyped-def]
            super().save_pretrained(*args, **{**kwargs, "variant": VARIANT})

    # The same name, for transformers writes it into config.json.
    Compressed.__name__ = Compressed.__qualname__ = base.__name__
    return Compressed


def _compress_(model, config, state) -> None:  # type: ignore[no-untyped-def]
    """Give a new model the layers, sizes and quantized modules that a saved model has."""
    layers = state.get("layers", {"compact": {}})
    compact = _of_model(layers["compact"], model, config)
    for name, shape in compact.items():
        model.set_submodule(name, CompactBlock(type(model.get_submodule(name)), config, **shape))
    for name in {name.rpartition(".")[0] for name in compact}:
        # config.num_hidden_layers counts the narrow layers inside compact blocks too.
        model.set_submodule(name, model.get_submodule(name)[: layers["count"]])
        number_(model.get_submodule(name))
    for name, first in _of_model(layers.get("first", {}), model, config).items():
        if not first:
            host = type(model.get_submodule(name))
            model.set_submodule(name, new_layer(host, config, first=False))
            number_(model.get_submodule(name.rpartition(".")[0]))
    resize_(model, _of_model(state.get("sizes", {}), model, config))
    for name, spec in _of_model(state.get("quantized", {}), model, config).items():
        model.set_submodule(name, quantized_module(spec))
    head = model.get_output_embeddings()
    quantized = isinstance(model.get_input_embeddings(), QuantizedEmbedding)
    if quantized and isinstance(head, nn.Linear) and config.tie_word_embeddings:
        raise ValueError(
            "the embeddings of the saved model are quantized and cannot be those of the output of "
            f"{type(model).__name__}: load it as {config.architectures[0]}"
        )


def _of_model(state: dict[str, Any], model, config) -> dict[str, Any]:  # type: ignore[no-untyped-def]
    """A part of the state of a saved model by the names in another, without those it has not.

    The other model may have another head, which is as new as with transformers' own classes, or
    none. One of the same class has to have all of them.
    """
    if type(model).__name__ in (config.architectures or [type(model).__name__]):
        return state
    prefix, modules = f"{model.base_model_prefix}.", dict(model.named_modules())
    found = {}
    for name, value in state.items():
        for own in (name, name.removeprefix(prefix), prefix + name):
            if own in modules:
                found[own] = value
                break
    return found


def __getattr__(name: str) -> type:
    base = getattr(transformers, name, None)
    if not isinstance(base, type):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = compressed_class(base)
    return found
