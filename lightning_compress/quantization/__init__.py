"""Quantization: weights, and what they are multiplied with, in fewer bits."""

from lightning_compress.quantization.coverage import Coverage, coverage_of
from lightning_compress.quantization.quantizing import check_quantization, quantize_
from lightning_compress.quantization.schemes import (
    SCHEMES,
    Observer,
    Options,
    SchemeName,
    needs_examples,
)
from lightning_compress.quantization.sensitivity import sensitivities
from lightning_compress.quantization.training import check_preparation, prepare_

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
