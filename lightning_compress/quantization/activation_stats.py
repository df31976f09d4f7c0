"""What goes into linear layers, seen on calibration examples.

Which inputs a fixed step has to tell apart.

Sources: Jacob et al., "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", 2018, https://arxiv.org/abs/1712.05877 (the extremes); Nagel et
al., "A White Paper on Neural Network Quantization", 2021, https://arxiv.org/abs/2106.08295 (the
least squared error).

Inputs that stand out are made smaller, and the weights that meet them larger.

Source: Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large
Language Models", 2023, https://arxiv.org/abs/2211.10438. There the factors go into the norm in
front. In a BERT the output of a norm is also what is passed on beside the layer, where that would
be wrong; here the factors stand where the inputs are rounded, which is exact in every family.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_compress.errors import InputError
from lightning_compress.models.calibration import in_one_piece, token_mask
from lightning_compress.models.forward import model_inputs
from lightning_compress.models.modeling_quantized import INPUTS, SMALLEST_STEP, round_by
from lightning_compress.quantization.schemes import Observer
from lightning_compress.types import Batch

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


_LOWEST, _HIGHEST = INPUTS


_PERCENTILE = 0.9999


_SHRUNK = 100  # ranges that are tried, from a hundredth of the extremes to the whole


_VALUES = 1 << 16  # that are tried on


def input_grid(seen: Seen, observer: Observer, *, symmetric: bool = False) -> tuple[Tensor, Tensor]:
    """A step and the whole number that stands for zero, for :func:`round_by`: [1] and [1] int32.

    Args:
        seen: the inputs.
        observer: ``minmax`` (all of them fit), ``percentile`` (all but one in 10,000 on either
            side), or ``mse`` (those whose squared error is least in all).
        symmetric: whether zero stands for zero; the values reach as far down as up then.
    """
    low, high = seen.smallest.min(), seen.largest.max()
    grid = _symmetric_grid if symmetric else _grid
    if observer == "minmax":
        return grid(low, high)
    values = seen.rows.flatten()
    values = values[:: -(-len(values) // _VALUES)]
    if observer == "percentile":
        edges = values.double().quantile(values.new_tensor([1 - _PERCENTILE, _PERCENTILE]).double())
        return grid(*edges.float())
    grids = [grid(low * part / _SHRUNK, high * part / _SHRUNK) for part in range(1, _SHRUNK + 1)]
    errors = [
        ((round_by(values, step, zero) - zero) * step - values).square().sum()
        for step, zero in grids
    ]
    return grids[int(torch.stack(errors).argmin())]


def _grid(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers from -128 to 127 for values from ``low`` to ``high``; zero is among them."""
    low, high = low.clamp(max=0), high.clamp(min=0)
    step = ((high - low) / (_HIGHEST - _LOWEST)).clamp(min=SMALLEST_STEP).reshape(1)
    zero = (_LOWEST - low / step).round().clamp(_LOWEST, _HIGHEST).to(torch.int32)
    return step, zero


def _symmetric_grid(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers from -127 to 127 for values from ``low`` to ``high``; zero is zero."""
    step = (high.maximum(-low) / _HIGHEST).clamp(min=SMALLEST_STEP).reshape(1)
    return step, torch.zeros(1, dtype=torch.int32, device=step.device)


_SMALLEST = 1e-5


def smoothing_factor(weight: Tensor, largest: Tensor, strength: float) -> Tensor:
    """What to multiply each input with, and to divide its weights by: [inputs].

    Args:
        weight: [outputs, inputs].
        largest: the largest absolute value of each input, [inputs].
        strength: 0 leaves the inputs alone, 1 makes them all as large.
    """
    reached = largest.clamp(min=_SMALLEST) ** strength
    return weight.abs().amax(0).clamp(min=_SMALLEST) ** (1 - strength) / reached
