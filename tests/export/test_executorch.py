"""ExecuTorch."""

import pytest
import torch

from lightning_compress.export import ExportOptions, export_model

from .edits import edit_everywhere


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "int8-dynamic", "int8-static"])
@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "electra", "gpt2"])
def test_executorch_in_every_precision(family, precision, tiny_model, batches, tmp_path):
    pytest.importorskip("executorch")
    calibration = batches if precision == "int8-static" else []
    options = ExportOptions(precision=precision, calibration_batches=calibration, max_batch_size=4)
    model = tiny_model(family)
    found = export_model(model, tmp_path, "executorch", examples=batches, options=options)
    if precision == "fp32":
        assert found.largest_difference < 1e-5
    else:
        assert 0 < found.largest_difference < 2e-2


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_executorch_matches_pytorch_after_every_edit(family, tiny_model, batches, tmp_path):
    pytest.importorskip("executorch")
    torch.manual_seed(0)
    model = tiny_model(family, num_hidden_layers=4)
    edit_everywhere(model)
    options = ExportOptions(max_batch_size=4)
    found = export_model(model, tmp_path, "executorch", examples=batches, options=options)
    assert found.largest_difference < 1e-5
