"""The settings of a benchmark."""

import dataclasses
from typing import get_type_hints

from lightning_compress.evaluation.settings import BenchmarkOptions, BenchmarkSettings


def test_the_options_that_are_passed_on_are_the_fields_of_the_settings():
    names = [field.name for field in dataclasses.fields(BenchmarkSettings)]
    assert list(BenchmarkOptions.__annotations__) == names
    hints = get_type_hints(BenchmarkSettings)
    assert get_type_hints(BenchmarkOptions) == {name: hints[name] for name in names}
