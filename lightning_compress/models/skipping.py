"""Run a model as if some of its layers were not there."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from lightning_compress.models.structure import structure_of


@contextmanager
def skipped(model: nn.Module, layers: Sequence[int]) -> Iterator[None]:
    """Pass on what goes into these layers instead of what comes out of them.

    Args:
        model: a transformer of a known family.
        layers: counted from 0.
    """
    blocks = structure_of(model).layers
    hooks = [
        model.get_submodule(blocks[layer]).register_forward_hook(_pass_on, with_kwargs=True)
        for layer in layers
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def hidden_in(inputs: tuple[Any, ...], keywords: dict[str, Any]) -> Tensor:
    """What goes into a layer, of the arguments that it is called with: [B, S, H]."""
    hidden: Tensor = inputs[0] if inputs else keywords["hidden_states"]
    return hidden


def _pass_on(
    module: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any], output: Any
) -> Any:
    hidden = hidden_in(inputs, keywords)
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden
