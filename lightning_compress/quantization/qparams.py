"""Quantization parameters from activation statistics: scale, zero point and smoothing scale.

Sources: Jacob et al., "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", 2018, https://arxiv.org/abs/1712.05877 (minmax); Nagel et al.,
"A White Paper on Neural Network Quantization", 2021, https://arxiv.org/abs/2106.08295 (mse); Xiao
et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models",
2023, https://arxiv.org/abs/2211.10438. SmoothQuant folds its scales into the preceding norm. In
BERT the output of a norm also feeds the residual connection, so that would change the function;
here the scales are applied where inputs are quantized, which is exact in every family.
"""

import torch
from torch import Tensor

from lightning_compress.models.modeling_quantized import (
    INPUT_QMAX,
    INPUT_QMIN,
    MIN_SCALE,
    quantize_affine,
)
from lightning_compress.quantization.activation_stats import ActivationStats
from lightning_compress.quantization.config import Observer

_PERCENTILE = 0.9999
_MSE_RANGES = 100  # candidates, from a hundredth of the full range to all of it
_MSE_VALUES = 1 << 16  # number of values that the error is measured on
_MIN_MAGNITUDE = 1e-5


def choose_qparams(
    stats: ActivationStats, observer: Observer, *, symmetric: bool = False
) -> tuple[Tensor, Tensor]:
    """Choose scale and zero point of a layer's inputs, for :func:`quantize_affine`.

    Args:
        stats: of the inputs.
        observer: ``minmax`` (the full range), ``percentile`` (all but one value in 10,000 at
            either end) or ``mse`` (the range whose squared quantization error is least).
        symmetric: fix the zero point at 0; the range is then the same on both sides of it.

    Returns:
        Scale [1] float32 and zero point [1] int32.
    """
    low, high = stats.min.min(), stats.max.max()
    qparams = _symmetric_qparams if symmetric else _affine_qparams
    if observer == "minmax":
        return qparams(low, high)
    values = stats.samples.flatten()
    values = values[:: -(-len(values) // _MSE_VALUES)]
    if observer == "percentile":
        edges = values.double().quantile(values.new_tensor([1 - _PERCENTILE, _PERCENTILE]).double())
        return qparams(*edges.float())
    candidates = [
        qparams(low * part / _MSE_RANGES, high * part / _MSE_RANGES)
        for part in range(1, _MSE_RANGES + 1)
    ]
    errors = [
        ((quantize_affine(values, scale, zero_point) - zero_point) * scale - values).square().sum()
        for scale, zero_point in candidates
    ]
    return candidates[int(torch.stack(errors).argmin())]


def _affine_qparams(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Map [low, high], widened to include 0, to [-128, 127]; 0 is represented exactly."""
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = ((high - low) / (INPUT_QMAX - INPUT_QMIN)).clamp(min=MIN_SCALE).reshape(1)
    zero_point = (INPUT_QMIN - low / scale).round().clamp(INPUT_QMIN, INPUT_QMAX)
    return scale, zero_point.to(torch.int32)


def _symmetric_qparams(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Map [-max(high, -low), max(high, -low)] to [-127, 127], with a zero point of 0."""
    scale = (high.maximum(-low) / INPUT_QMAX).clamp(min=MIN_SCALE).reshape(1)
    return scale, torch.zeros(1, dtype=torch.int32, device=scale.device)


def smoothing_scale(weight: Tensor, max_abs: Tensor, alpha: float) -> Tensor:
    """SmoothQuant's scale of each input, which its weights are divided by.

    The inverse of the paper's s, with which inputs are divided there.

    Args:
        weight: [out_features, in_features].
        max_abs: largest absolute value of each input, [in_features].
        alpha: in [0, 1]; the larger, the more of the outliers moves into the weights. At 1 all
            inputs have the same range.

    Returns:
        [in_features].
    """
    magnitude = max_abs.clamp(min=_MIN_MAGNITUDE) ** alpha
    return weight.abs().amax(0).clamp(min=_MIN_MAGNITUDE) ** (1 - alpha) / magnitude
