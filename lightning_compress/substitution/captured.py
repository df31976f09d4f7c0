"""What passes through the layers that are to be replaced."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_compress.models.calibration import Calibration, token_mask
from lightning_compress.models.layers import hidden_in
from lightning_compress.models.switch import Choice


@dataclass(frozen=True)
class Passage:
    """One batch at a group of layers.

    Args:
        hidden: [B, S, H], what goes in.
        keywords: the other arguments that the layers take: masks.
        rest: those that are not named.
        target: [B, S, H], what came out of the layers in the dense model.
        mask: [B, S], true at tokens, false at padding.
    """

    hidden: Tensor
    rest: tuple[Any, ...]
    keywords: Mapping[str, Any]
    target: Tensor
    mask: Tensor


@torch.no_grad()
def dense_outputs(choices: Sequence[Choice], calibration: Calibration) -> list[list[Tensor]]:
    """What comes out of each group of layers in the dense model: [B, S, H] of every batch."""
    with _going(choices, replaced=0):
        found: list[list[Tensor]] = [[] for _ in choices]
        hooks = [
            choice.register_forward_hook(
                lambda module, inputs, output, said=said: said.append(output)
            )
            for choice, said in zip(choices, found, strict=True)
        ]
        try:
            for batch in calibration.batches:
                calibration.logits(batch)
        finally:
            for hook in hooks:
                hook.remove()
    return found


@torch.no_grad()
def passages(
    choices: Sequence[Choice], group: int, calibration: Calibration, targets: Sequence[Tensor]
) -> list[Passage]:
    """What goes into a group of layers behind the compact blocks of the groups before it.

    Args:
        choices: of the model, first to last.
        group: which of them.
        calibration: the examples.
        targets: of every batch, as of :func:`dense_outputs`.
    """
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    with _going(choices, replaced=group):
        hook = choices[group].register_forward_pre_hook(
            lambda module, inputs, keywords: calls.append((inputs, keywords)), with_kwargs=True
        )
        try:
            for batch in calibration.batches:
                calibration.logits(batch)
        finally:
            hook.remove()
    return [
        Passage(
            hidden_in(inputs, keywords),
            tuple(_without_cache(one) for one in inputs[1:]),
            {
                name: _without_cache(one)
                for name, one in keywords.items()
                if name != "hidden_states"
            },
            target,
            token_mask(batch),
        )
        for (inputs, keywords), target, batch in zip(
            calls, targets, calibration.batches, strict=True
        )
    ]


@contextmanager
def _going(choices: Sequence[Choice], *, replaced: int) -> Iterator[None]:
    """Through the compact blocks of the first so many groups and the old layers of the others."""
    before = [choice.replaced for choice in choices]
    for index, choice in enumerate(choices):
        choice.replaced = index < replaced
    try:
        yield
    finally:
        for choice, was in zip(choices, before, strict=True):
            choice.replaced = was


def _without_cache(argument: Any) -> Any:
    """A cache would remember the keys of every call."""
    from transformers import Cache

    return None if isinstance(argument, Cache) else argument


def through(block: nn.Module, passage: Passage) -> Tensor:
    """What a block makes of a batch: [B, S, H]."""
    found: Tensor = block(passage.hidden, *passage.rest, **passage.keywords)
    return found
