"""Which inputs a fixed step has to tell apart.

Sources: Jacob et al., "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", 2018, https://arxiv.org/abs/1712.05877 (the extremes); Nagel et
al., "A White Paper on Neural Network Quantization", 2021, https://arxiv.org/abs/2106.08295 (the
least squared error).
"""

import torch
from torch import Tensor

from lightning_compress.models.modeling_quantized import INPUTS, SMALLEST_STEP, round_by
from lightning_compress.quantization.observing import Seen
from lightning_compress.quantization.schemes import Observer

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
