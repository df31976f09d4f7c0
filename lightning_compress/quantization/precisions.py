"""The precisions that a model can be in, one table, and the options of quantization.

A new precision is one entry of ``PRECISIONS`` (and of ``PrecisionName``, the type of options) and,
where it computes differently, the module that implements it in
:mod:`lightning_compress.models.modeling_quantized`. The options are written once, for functions,
callbacks and modules.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import nn

from lightning_compress.errors import InputError, require_choice
from lightning_compress.models.manifest import QUANTIZATION_EDIT, edits_of

PrecisionName = Literal[
    "fp32", "bf16", "fp16", "int8-weight", "int4-weight", "int8-dynamic", "int8-static"
]


Activations = Literal["float", "dynamic", "static"]


@dataclass(frozen=True)
class Instructions:
    """Instructions of a processor without which a precision saves memory, but little or no time.

    Args:
        missing: what a report notes on a processor without them, after "this CPU" or "this GPU".
        x86: names in ``torch.cpu.get_capabilities()``, one of which is enough.
        cuda: lowest major compute capability; None: every GPU has them.
    """

    missing: str
    x86: tuple[str, ...]
    cuda: int | None = None


@dataclass(frozen=True)
class Tolerance:
    """How far an exported model may differ from the model in PyTorch.

    Args:
        max_difference: between logits of magnitude 1; relative to the largest logit above that.
        min_equal: fraction of the predictions that must be equal, in [0, 1].
    """

    max_difference: float
    min_equal: float


# An activation near the midpoint of two integers may be quantized to either.
_QUANTIZED = Tolerance(max_difference=0.1, min_equal=0.97)


SHORTER_PRODUCTS = "fewer heads, neurons or layers (pruning, distillation) shorten every product"
"""What makes a model faster where int8 products do not."""


_INT8_PRODUCTS = Instructions(
    f"has no int8 dot-product instructions (VNNI, AMX); {SHORTER_PRODUCTS}",
    ("avx512_vnni", "avx_vnni", "amx_int8"),
)


_UNFUSED = "eager runs each quantization step as a separate pass over memory; compile fuses them"


_DEQUANTIZED = (
    "weight-only precisions save bytes on disk, not time: they are dequantized before each product"
)


@dataclass(frozen=True)
class Precision:
    """A precision of weights and activations.

    Args:
        weight_bits: of the weights of linear layers: 32, 16, 8 or 4 (packed two to a byte).
            Embeddings have 8 where linear layers have 8 or 4.
        activations: how the inputs of linear layers are quantized: ``float`` (not at all),
            ``dynamic`` (int8, one scale per token) or ``static`` (int8, scale and zero point
            found by calibration).
        dtype: floating-point type that the whole model is cast to; None: linear layers and
            embeddings become quantized modules, and everything else stays in float32.
        tolerance: of an exported model.
        instructions: without which it may be no faster than fp32.
        caveat: why it may be no faster than fp32 anywhere.
        unfused_caveat: why it may be no faster than fp32 in a runtime that fuses no operations.
    """

    weight_bits: int
    activations: Activations = "float"
    dtype: torch.dtype | None = None
    tolerance: Tolerance = _QUANTIZED
    instructions: Instructions | None = None
    caveat: str | None = None
    unfused_caveat: str | None = None

    @property
    def needs_calibration(self) -> bool:
        """Whether scales are found on calibration examples."""
        return self.activations == "static"


PRECISIONS: dict[str, Precision] = {
    "fp32": Precision(32, dtype=torch.float32, tolerance=Tolerance(1e-4, 0.999)),
    "bf16": Precision(
        16,
        dtype=torch.bfloat16,
        tolerance=Tolerance(0.1, 0.97),
        instructions=Instructions(
            "has no bf16 instructions (x86: AVX512-BF16 or AMX; NVIDIA: Ampere or later): "
            "bf16 saves memory, not time",
            ("avx512_bf16", "amx_bf16"),
            cuda=8,
        ),
    ),
    "fp16": Precision(
        16,
        dtype=torch.float16,
        tolerance=Tolerance(0.02, 0.99),
        instructions=Instructions(
            "has no fp16 instructions (AVX512-FP16, AMX): fp16 saves memory, not time",
            ("avx512_fp16", "amx_fp16"),
        ),
    ),
    "int8-weight": Precision(8, caveat=_DEQUANTIZED),
    "int4-weight": Precision(4, caveat=_DEQUANTIZED),
    "int8-dynamic": Precision(8, "dynamic", instructions=_INT8_PRODUCTS, unfused_caveat=_UNFUSED),
    "int8-static": Precision(8, "static", instructions=_INT8_PRODUCTS, unfused_caveat=_UNFUSED),
}


SCHEMES: dict[str, Precision] = {
    name: precision for name, precision in PRECISIONS.items() if precision.weight_bits < 32
}
"""The precisions that :func:`~lightning_compress.quantization.quantize_` produces."""


def own_precision(model: nn.Module) -> PrecisionName | None:
    """The precision of a quantized model, in which it stays; None: it can be cast to any."""
    schemes = [edit["scheme"] for edit in edits_of(model, QUANTIZATION_EDIT)]
    return schemes[0] if schemes else None


PORTABLE_BITS = 7
"""Bits of weights, stored in int8, whose products with int8 inputs are exact on every CPU."""


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
            :func:`~lightning_compress.quantization.activation_stats.smoothing_scale`; None: off.
        symmetric: fix the zero point of ``int8-static`` at 0, as TensorRT requires.
        full_range: let the weights of ``int8-dynamic`` and ``int8-static`` be within ±127; default:
            within ±63, for which int8 products are exact on every CPU. In full range ONNX Runtime
            and OpenVINO compute other sums on x86 CPUs without VNNI (two products are added in 16
            bits there), and PyTorch computes the right ones as slowly as in float32.
        skip_modules: names of modules that stay in floating point, with all that is in them; not
            with ``bf16`` and ``fp16``.

    Raises:
        InputError: an option is out of range, or has no meaning for the scheme.
    """

    scheme: PrecisionName = "int8-dynamic"
    group_size: int = 32
    observer: Observer = "mse"
    smooth_alpha: float | None = None
    symmetric: bool = False
    full_range: bool = False
    skip_modules: Sequence[str] = ()

    def __post_init__(self) -> None:
        require_choice("scheme", self.scheme, SCHEMES)
        if self.group_size < 2 or self.group_size % 2:
            raise InputError(
                f"group_size must be an even number of weights, at least 2, not {self.group_size}"
            )
        require_choice("observer", self.observer, get_args(Observer))
        options = {"skip_modules": list(self.skip_modules), "smooth_alpha": self.smooth_alpha}
        for name, value in options.items() if self.precision.dtype is not None else ():
            if value not in (None, []):
                raise InputError(
                    f"{name}: {self.scheme} casts the whole model; leave it out, or choose a "
                    "scheme with 8 or 4 bits"
                )
        if self.smooth_alpha is not None and not 0 <= self.smooth_alpha <= 1:
            raise InputError(f"smooth_alpha must be in [0, 1], not {self.smooth_alpha}")

    @property
    def precision(self) -> Precision:
        """The entry of ``PRECISIONS`` that ``scheme`` names."""
        return SCHEMES[self.scheme]

    @property
    def weight_bits(self) -> int:
        """Bits of the weights of linear layers."""
        if self.precision.activations == "float" or self.full_range:
            return self.precision.weight_bits
        return PORTABLE_BITS

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
