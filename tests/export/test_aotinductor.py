"""AOTInductor."""

import pytest

from lightning_compress.export import ExportOptions, export_model


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "int8-dynamic"])
def test_aotinductor_matches_pytorch(precision, tiny_bert, batches, tmp_path):
    options = ExportOptions(precision=precision)
    found = export_model(tiny_bert, tmp_path, "aotinductor", examples=batches, options=options)
    assert found.largest_difference < 1e-5
