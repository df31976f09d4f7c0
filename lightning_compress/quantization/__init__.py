"""Quantization: int8 and int4 weights, int8 activations, half precision."""

from lightning_compress.quantization.precisions import (
    PRECISIONS,
    SCHEMES,
    Observer,
    Precision,
    PrecisionName,
    QuantizationConfig,
)
from lightning_compress.quantization.qat import check_preparation, prepare_
from lightning_compress.quantization.quantize import (
    Coverage,
    check_quantization,
    coverage_of,
    quantize_,
)
from lightning_compress.quantization.sensitivity import sensitivities

__all__ = [
    "PRECISIONS",
    "SCHEMES",
    "Coverage",
    "Observer",
    "Precision",
    "PrecisionName",
    "QuantizationConfig",
    "check_preparation",
    "check_quantization",
    "coverage_of",
    "prepare_",
    "quantize_",
    "sensitivities",
]
