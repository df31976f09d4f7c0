"""The table of runtimes, and what is derived from it."""

from typing import get_args

from lightning_compress.evaluation.runtimes.runtime import RuntimeOptions
from lightning_compress.evaluation.runtimes.table import RUNTIMES, RuntimeName
from lightning_compress.evaluation.settings import BenchmarkSettings
from lightning_compress.export.formats import FORMATS


def test_the_literal_and_the_docstring_name_the_runtimes_of_the_table():
    assert list(get_args(RuntimeName)) == list(RUNTIMES)
    assert all(f"``{name}``" in (BenchmarkSettings.__doc__ or "") for name in RUNTIMES)


def test_each_runtime_has_the_name_of_its_entry():
    built = {name: runtime(RuntimeOptions()) for name, runtime in RUNTIMES.items()}
    assert all(runtime.name == name for name, runtime in built.items())
    assert all(runtime.devices() for runtime in built.values())


def test_every_export_format_is_a_runtime():
    assert {format.runtime for format in FORMATS.values()} <= set(RUNTIMES)
    assert len({format.runtime for format in FORMATS.values()}) == len(FORMATS)
