"""The table of techniques knows every callback and module that compresses."""

from lightning_compress import callbacks, modules

from .techniques import TECHNIQUES

# What measures, and what saves on Ctrl-C, compresses nothing.
OTHERS = {"CompressionBenchmark", "RunSafety"}


def test_no_callback_is_missing() -> None:
    made = {type(one).__name__ for entry in TECHNIQUES.values() for one in entry.callbacks()}
    assert made == set(callbacks.__all__) - OTHERS


def test_no_module_is_missing() -> None:
    made = {entry.module.__name__ for entry in TECHNIQUES.values()}
    assert made == {name for name in modules.__all__ if name.endswith("Module")}
