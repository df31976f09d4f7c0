"""When to compress: one callback a file; ships as ``lightning_compress.callbacks``."""

from .compression_benchmark import CompressionBenchmark
from .magnitude_pruning import IterativeMagnitudePruning
from .run_safety import RunSafety

__all__ = ["CompressionBenchmark", "IterativeMagnitudePruning", "RunSafety"]
