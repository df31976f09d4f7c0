"""When to compress: one callback a file; ships as ``lightning_compress.callbacks``."""
