"""What goes into linear layers, seen on calibration examples."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_compress.errors import InputError
from lightning_compress.models.calibration import Batch, in_one_piece, token_mask
from lightning_compress.models.inputs import model_inputs

CALIBRATION_EXAMPLES = 512
"""Enough to find steps on; with more they hardly change."""

_ROWS = 2048  # tokens of which all inputs are kept


@dataclass(frozen=True)
class Seen:
    """Of the N inputs of a linear layer.

    Args:
        largest: of each input, over all tokens, [N].
        smallest: the same.
        rows: all inputs of some tokens, evenly spread over the examples, [T, N].
    """

    largest: Tensor
    smallest: Tensor
    rows: Tensor

    def scaled(self, factor: Tensor) -> "Seen":
        """The same of inputs that are multiplied by positive factors, [N]."""
        return Seen(self.largest * factor, self.smallest * factor, self.rows * factor)


@torch.no_grad()
def observe(model: nn.Module, names: Sequence[str], batches: Sequence[Batch]) -> dict[str, Seen]:
    """Look at the inputs of linear layers, by name; padding does not count.

    Args:
        model: in eval mode.
        names: of the layers.
        batches: examples.

    Raises:
        InputError: a layer was not used, or an input is not a number.
    """
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    extremes: dict[str, tuple[Tensor, Tensor]] = {}
    tokens = sum(int(token_mask(batch).sum()) for batch in batches)
    device = next(model.parameters()).device
    mask: Tensor

    def watch(name: str):  # type: ignore[no-untyped-def]  # a hook, for torch alone
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            said = inputs[0].detach()
            # A pooler or a classifier sees one token of a text.
            whole = said.dim() == 3 and said.shape[:2] == mask.shape
            said = said[mask] if whole else said.reshape(-1, said.shape[-1])
            said = said.float()
            high, low = said.amax(0), said.amin(0)
            if not (high - low).isfinite().all():
                raise InputError(
                    f"the inputs of {name} are not finite on the calibration examples: the model "
                    "is broken; load it again"
                )
            if name in extremes:
                high, low = high.maximum(extremes[name][0]), low.minimum(extremes[name][1])
            extremes[name] = high, low
            found[name].append(said[:: max(1, tokens // _ROWS)])

        return hook

    hooks = [model.get_submodule(name).register_forward_pre_hook(watch(name)) for name in names]
    try:
        with in_one_piece(model):
            for batch in batches:
                inputs = model_inputs(model, batch)
                mask = token_mask(inputs).to(device)
                model(**{name: value.to(device) for name, value in inputs.items()})
    finally:
        for handle in hooks:
            handle.remove()
    unused = [name for name in names if name not in extremes]
    if unused:
        raise InputError(f"{unused[0]} was not used by any calibration example")
    return {name: Seen(*extremes[name], torch.cat(found[name])) for name in names}
