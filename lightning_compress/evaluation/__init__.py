"""How good: footprint, latency and quality by one protocol, and the report."""

from lightning_compress.evaluation.footprint import Footprint, measure_footprint
from lightning_compress.evaluation.latency import Latency, measure_latency

__all__ = ["Footprint", "Latency", "measure_footprint", "measure_latency"]
