"""The table of export formats."""

from typing import get_args

import pytest

from lightning_compress.export import FORMATS, ExportOptions, FormatName
from lightning_compress.export.format import OPTIONAL
from lightning_compress.quantization.precisions import PRECISIONS


def test_the_literal_names_the_formats_of_the_table():
    assert list(get_args(FormatName)) == list(FORMATS)


@pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS)
def test_a_format_supports_known_precisions_and_options(format):
    assert FORMATS[format.name] is format
    assert set(format.precisions) <= set(PRECISIONS)
    assert set(format.own_options) <= set(OPTIONAL) <= set(vars(ExportOptions()))
    assert bool(format.packages) == (format.extra is not None)


def test_each_optional_option_belongs_to_a_format():
    assert {name for format in FORMATS.values() for name in format.own_options} == set(OPTIONAL)
