"""Statistics of the inputs of linear layers, and the quantization parameters that follow from them.

Sources: Jacob et al., "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", 2018, https://arxiv.org/abs/1712.05877 (minmax); Nagel et al.,
"A White Paper on Neural Network Quantization", 2021, https://arxiv.org/abs/2106.08295 (mse); Xiao
et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models",
2023, https://arxiv.org/abs/2211.10438. SmoothQuant folds its scales into the preceding norm. In
BERT the output of a norm also feeds the residual connection, so that would change the function;
here the scales are applied where inputs are quantized, which is exact in every family.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_compress.errors import InputError
from lightning_compress.models.calibration import in_one_piece, token_mask
from lightning_compress.models.forward import model_inputs
from lightning_compress.models.hooks import Call, before_calls
from lightning_compress.models.modeling_kernels import INPUT_QMAX, INPUT_QMIN
from lightning_compress.models.modeling_quantized import (
    MIN_SCALE,
    quantize_affine,
)
from lightning_compress.quantization.precisions import Observer
from lightning_compress.types import Batch

CALIBRATION_EXAMPLES = 512
"""Default number of calibration examples; scales hardly change with more."""


_SAMPLED_TOKENS = 2048


@dataclass(frozen=True)
class ActivationStats:
    """Statistics of the N inputs of a linear layer over the tokens of the calibration examples.

    Args:
        max: largest value of each input, [N] float32.
        min: smallest value of each input, [N] float32.
        samples: all inputs of about 2048 tokens, evenly spread over the examples, [T, N] float32.
    """

    max: Tensor
    min: Tensor
    samples: Tensor

    def scaled(self, scale: Tensor) -> "ActivationStats":
        """The statistics of inputs that are multiplied by positive scales, [N]."""
        return ActivationStats(self.max * scale, self.min * scale, self.samples * scale)


@torch.no_grad()
def collect_activation_stats(
    model: nn.Module, names: Sequence[str], batches: Sequence[Batch]
) -> dict[str, ActivationStats]:
    """Run a model on calibration examples and collect statistics of linear layers' inputs.

    Args:
        model: in eval mode.
        names: of the linear layers.
        batches: calibration examples; padding tokens are left out.

    Returns:
        Statistics by name of the layer.

    Raises:
        InputError: a layer received no input, or an input is not finite.
    """
    collectors = {name: _Collector(name) for name in names}
    hooks = [(model.get_submodule(name), one.collect) for name, one in collectors.items()]
    tokens = sum(int(token_mask(batch, model).sum()) for batch in batches)
    stride = max(1, tokens // _SAMPLED_TOKENS)
    device = next(model.parameters()).device
    with in_one_piece(model), before_calls(hooks):
        for batch in batches:
            inputs = model_inputs(model, batch)
            for collector in collectors.values():
                collector.mask = token_mask(inputs, model).to(device)
                collector.stride = stride
            model(**{name: value.to(device) for name, value in inputs.items()})
    return {name: collector.stats() for name, collector in collectors.items()}


class _Collector:
    """Collects the inputs of one linear layer.

    Attributes:
        mask: [B, S] tokens of the present batch.
        stride: every how many tokens one is sampled.
    """

    mask: Tensor
    stride: int

    def __init__(self, name: str) -> None:
        self._name = name
        self._samples: list[Tensor] = []
        self._extremes: tuple[Tensor, Tensor] | None = None

    def collect(self, call: Call) -> None:
        rows = _token_rows(call.inputs[0].detach(), self.mask).float()
        high, low = rows.amax(0), rows.amin(0)
        if not (high - low).isfinite().all():
            raise InputError(
                f"the inputs of {self._name} are not finite on the calibration examples: the "
                "model's weights are damaged; load it again"
            )
        if self._extremes is not None:
            high, low = high.maximum(self._extremes[0]), low.minimum(self._extremes[1])
        self._extremes = high, low
        self._samples.append(rows[:: self.stride])

    def stats(self) -> ActivationStats:
        if self._extremes is None:
            raise InputError(f"{self._name} was not used by any calibration example")
        return ActivationStats(*self._extremes, torch.cat(self._samples))


def _token_rows(inputs: Tensor, mask: Tensor) -> Tensor:
    """The inputs of all tokens but padding, [T, N]; poolers and classifiers get one per text."""
    if inputs.dim() == 3 and inputs.shape[:2] == mask.shape:
        return inputs[mask]
    return inputs.reshape(-1, inputs.shape[-1])


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
