"""Outputs that are not finite: whether there are any, and which module gave the first."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from lightning_compress.models.calibration import token_mask
from lightning_compress.models.forward import evaluating, inputs_for
from lightning_compress.types import Batch


def is_finite(logits: Tensor, batch: Batch) -> bool:
    """Whether a batch's logits, [B, C] or [B, S, V], are all finite; padding does not count."""
    finite = logits.isfinite()
    if logits.dim() == 3:
        finite = finite.all(-1) | ~token_mask(batch).to(logits.device)
    return bool(finite.all())


@torch.no_grad()
def first_not_finite(model: nn.Module, batch: Batch) -> str | None:
    """The name of the first module whose output is not finite on a batch; None if all are."""
    found: list[str] = []

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if not found and not all(one.isfinite().all() for one in _floats(output)):
                found.append(name)

        return hook

    with ExitStack() as stack, evaluating(model):
        for name, module in model.named_modules():
            if name:
                stack.callback(module.register_forward_hook(watch(name)).remove)
        model(**inputs_for(model, batch))
    return found[0] if found else None


def _floats(output: Any) -> Iterator[Tensor]:
    """The floating-point tensors in what a module returned."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, dict):
        yield from _floats(list(output.values()))
    elif isinstance(output, list | tuple):
        for one in output:
            yield from _floats(one)


def not_finite(model: nn.Module | None, batch: Batch, precision: str) -> str:
    """Say that a model's outputs are not finite, and where that starts.

    Args:
        model: whose modules can be watched; None if it is in another form.
        batch: on which the outputs are not finite.
        precision: of the model.
    """
    first = None if model is None else first_not_finite(model, batch)
    where = "" if first is None else f", first those of {first}"
    remedy = "; fp16 holds values up to 65504: take bf16" if precision == "fp16" else ""
    return f"the outputs are not finite (NaN or infinite) in {precision}{where}{remedy}"
