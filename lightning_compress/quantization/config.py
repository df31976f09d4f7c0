"""The options of quantization, written once for functions, callbacks and modules."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from lightning_compress.errors import InputError
from lightning_compress.quantization.precisions import SCHEMES, Precision, PrecisionName

Observer = Literal["minmax", "percentile", "mse"]


@dataclass(frozen=True)
class QuantizationConfig:
    """How a model is quantized.

    Args:
        scheme: ``bf16``, ``fp16`` (the whole model is cast); ``int8-weight``, ``int4-weight``
            (weight-only); ``int8-dynamic`` (weights per output channel, inputs per token) or
            ``int8-static`` (inputs by scales calibrated on training examples). Embeddings are
            int8 in all but the first two.
        group_size: number of neighbouring int4 weights that share a scale; even, and a divisor of
            the inputs of every quantized layer.
        observer: how ``int8-static`` chooses the range of inputs: ``minmax`` (all of them),
            ``percentile`` (all but one in 10,000 at either end) or ``mse`` (least squared error).
        smooth_alpha: strength of SmoothQuant in [0, 1], see
            :func:`~lightning_compress.quantization.qparams.smoothing_scale`; None: off.
        symmetric: fix the zero point of ``int8-static`` at 0, as TensorRT requires.
        skip_modules: names of modules that stay in floating point, with all that is in them.

    Raises:
        InputError: an option is out of range.
    """

    scheme: PrecisionName = "int8-dynamic"
    group_size: int = 32
    observer: Observer = "mse"
    smooth_alpha: float | None = None
    symmetric: bool = False
    skip_modules: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.scheme not in SCHEMES:
            raise InputError(f"scheme must be one of {', '.join(SCHEMES)}, not {self.scheme!r}")
        if self.group_size < 2 or self.group_size % 2:
            raise InputError(
                f"group_size must be an even number of weights, at least 2, not {self.group_size}"
            )
        if self.observer not in get_args(Observer):
            raise InputError(
                f"observer must be one of {', '.join(get_args(Observer))}, not {self.observer!r}"
            )
        if self.smooth_alpha is not None and not 0 <= self.smooth_alpha <= 1:
            raise InputError(f"smooth_alpha must be in [0, 1], not {self.smooth_alpha}")

    @property
    def precision(self) -> Precision:
        """The entry of ``PRECISIONS`` that ``scheme`` names."""
        return SCHEMES[self.scheme]

    @property
    def needs_calibration(self) -> bool:
        """Whether calibration examples are needed, for static scales or for smoothing."""
        return self.precision.needs_calibration or self.smooth_alpha is not None


def config_from(config: PrecisionName | QuantizationConfig) -> QuantizationConfig:
    """A configuration, or that of a scheme by its name with all other options at their defaults.

    Raises:
        InputError: there is no such scheme.
    """
    return config if isinstance(config, QuantizationConfig) else QuantizationConfig(config)
