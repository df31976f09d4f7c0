"""Evaluation: footprint, latency and quality measured by one protocol, and the report."""

from lightning_compress.evaluation.benchmark import benchmark
from lightning_compress.evaluation.footprint import Footprint, measure_footprint
from lightning_compress.evaluation.latency import Latency, measure_latency
from lightning_compress.evaluation.settings import BenchmarkSettings

__all__ = [
    "BenchmarkSettings",
    "Footprint",
    "Latency",
    "benchmark",
    "measure_footprint",
    "measure_latency",
]
