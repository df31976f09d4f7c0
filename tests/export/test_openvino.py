"""OpenVINO, and NNCF."""

import pytest

from lightning_compress.export import ExportOptions, export_model

from .edits import slow


@pytest.mark.slow
@pytest.mark.parametrize("family", ["roberta", "distilbert", "electra"])
def test_dense_models_of_other_families_in_onnx_and_openvino(family, tiny_model, batches, tmp_path):
    for format in ("onnx", "openvino"):
        found = export_model(
            tiny_model(family),
            tmp_path / format,
            format,
            examples=batches,
        )
        assert found.largest_difference < 1e-5


@pytest.mark.parametrize(
    "precision", ["int8-static", *slow("int8-dynamic", "fp32", "bf16", "fp16", "int8-weight")]
)
def test_openvino_in_every_precision(precision, tiny_bert, batches, tmp_path):
    options = ExportOptions(precision=precision, calibration_batches=batches)
    found = export_model(tiny_bert, tmp_path, "openvino", examples=batches, options=options)
    bound = {"fp32": 1e-5, "int8-static": 1e-3, "int8-weight": 1e-5}.get(precision, 2e-2)
    assert found.largest_difference < bound


@pytest.mark.slow
def test_nncf_calibrates_its_own_scales(tiny_bert, batches, tmp_path):
    options = ExportOptions(precision="int8-static", calibration_batches=batches, nncf=True)
    found = export_model(tiny_bert, tmp_path, "openvino", examples=batches, options=options)
    assert 0 < found.largest_difference < 0.1
    assert "FakeQuantize" in (tmp_path / "openvino_model.xml").read_text()
