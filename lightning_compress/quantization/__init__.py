"""Quantization: weights, and what they are multiplied with, in fewer bits."""

from lightning_compress.quantization.qat import check_preparation, prepare_
from lightning_compress.quantization.quantize import (
    Coverage,
    check_quantization,
    coverage_of,
    quantize_,
)
from lightning_compress.quantization.schemes import (
    SCHEMES,
    Observer,
    Options,
    SchemeName,
    needs_examples,
)
from lightning_compress.quantization.sensitivity import sensitivities

__all__ = [
    "SCHEMES",
    "Coverage",
    "Observer",
    "Options",
    "SchemeName",
    "check_preparation",
    "check_quantization",
    "coverage_of",
    "needs_examples",
    "prepare_",
    "quantize_",
    "sensitivities",
]
