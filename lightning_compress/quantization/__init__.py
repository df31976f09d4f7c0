"""Quantization: int8 and int4 weights, int8 activations, half precision."""

from lightning_compress.quantization.config import Observer, QuantizationConfig
from lightning_compress.quantization.coverage import Coverage, coverage_of
from lightning_compress.quantization.precisions import (
    PRECISIONS,
    SCHEMES,
    Precision,
    PrecisionName,
)
from lightning_compress.quantization.qat import check_preparation, prepare_
from lightning_compress.quantization.quantize import check_quantization, quantize_
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
