"""How good: footprint, latency and quality by one protocol, and the report."""
