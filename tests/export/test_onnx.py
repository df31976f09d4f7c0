"""ONNX files in ONNX Runtime."""

import copy
import json

import onnx
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lightning_compress import quantize_, remove_heads_, remove_layers_, remove_neurons_
from lightning_compress.export import ExportOptions, export_model
from lightning_compress.export.onnx import OnnxProgram, write_onnx
from lightning_compress.models import manifest_of
from lightning_compress.quantization import QuantizationConfig

from ..families import ALL, IMAGES, SUBSTITUTABLE, randomize_
from ..families import tiny_model as tiny
from .edits import edit_everywhere, slow

FAST = ["bert"]
OTHERS = [family for family in ALL if family not in (*SUBSTITUTABLE, "albert")]
FAMILIES = [*FAST, *slow(*(family for family in SUBSTITUTABLE if family not in FAST))]


@pytest.mark.parametrize("family", FAMILIES)
def test_onnx_matches_pytorch_after_every_edit(family, tiny_model, batches, torch_logits, tmp_path):
    torch.manual_seed(0)
    model = tiny_model(family, num_hidden_layers=4)
    edit_everywhere(model)
    config = QuantizationConfig("int8-static", skip_modules=["score"] if family == "gpt2" else [])
    quantize_(model, config, calibration_batches=batches[:1])
    before = torch_logits(model, batches)
    found = export_model(model, tmp_path / "out", "onnx", examples=batches)
    # The steps of inputs are whole multiples there and here: nothing may fall between two.
    assert found.equal_predictions == 1
    assert found.largest_difference < 1e-4
    program = OnnxProgram(tmp_path / "out", threads=1)
    for batch, wanted in zip(batches, before, strict=True):
        torch.testing.assert_close(program(program.load(batch)), wanted, rtol=0, atol=1e-4)
    # The model is as it was, and the file computes with whole numbers.
    for one, other in zip(torch_logits(model, batches), before, strict=True):
        assert torch.equal(one, other)
    written = onnx.load(tmp_path / "out" / "model.onnx")
    kinds = [node.op_type for node in written.graph.node]
    assert kinds.count("QuantizeLinear") >= 12
    types = {onnx.TensorProto.DataType.Name(one.data_type) for one in written.graph.initializer}
    assert {"INT8", "UINT8"} <= types


@pytest.mark.slow
@pytest.mark.parametrize("family", [*OTHERS, *IMAGES])
def test_onnx_matches_pytorch_in_every_family(family, batches, torch_logits, tmp_path):
    model = randomize_(tiny(family, num_hidden_layers=3), low=0.05, high=0.05)
    remove_heads_(model, {0: [1, 3], 1: [0]})
    remove_neurons_(model, {0: range(0, 64, 2)})
    remove_layers_(model, [1])
    if family in IMAGES:
        batches = [
            {"pixel_values": torch.randn(3, 3, 8, 8)},
            {"pixel_values": torch.ones(1, 3, 8, 8)},
        ]
    found = export_model(model, tmp_path / "out", "onnx", examples=batches)
    assert found.equal_predictions == 1
    assert found.largest_difference < 1e-4


@pytest.mark.parametrize(
    "precision", [pytest.param("int8-dynamic", marks=pytest.mark.slow), "int8-static"]
)
def test_signed_activations_give_the_same_logits(precision, tiny_bert, batches, tmp_path):
    options = ExportOptions(precision=precision, calibration_batches=batches, signed=True)
    found = export_model(tiny_bert, tmp_path, "onnx", examples=batches, options=options)
    assert found.equal_predictions == 1
    assert found.largest_difference < 1e-5
    written = onnx.load(tmp_path / "model.onnx")
    types = {onnx.TensorProto.DataType.Name(one.data_type) for one in written.graph.initializer}
    assert "INT8" in types
    assert "UINT8" not in types


@pytest.mark.slow
def test_weights_in_full_range_are_exported_with_a_warning(tiny_bert, batches, tmp_path):
    portable = copy.deepcopy(tiny_bert)
    quantize_(portable, "int8-dynamic")
    quantize_(tiny_bert, QuantizationConfig("int8-dynamic", full_range=True))
    with pytest.warns(
        UserWarning, match=r"within ±127 .* onnxruntime adds two products in 16 bits"
    ):
        export_model(tiny_bert, tmp_path / "full", "onnx", examples=batches)
    export_model(portable, tmp_path / "portable", "onnx", examples=batches)  # warnings are errors
    for name, warned in (("full", True), ("portable", False)):
        facts = json.loads((tmp_path / name / "export.json").read_text())
        assert (facts["caveat"] is not None) is warned
        assert ("full_range: false" in (tmp_path / name / "README.md").read_text()) is warned


@pytest.mark.parametrize(
    "precision",
    ["int8-dynamic", *slow("fp32", "fp16", "int8-weight", "int4-weight", "int8-static")],
)
def test_onnx_in_every_precision(precision, tiny_bert, batches, tmp_path):
    options = ExportOptions(precision=precision, calibration_batches=batches)
    found = export_model(tiny_bert, tmp_path, "onnx", examples=batches, options=options)
    assert found.examples == 8
    assert found.largest_difference < (1e-3 if precision == "fp16" else 1e-5)
    facts = json.loads((tmp_path / "export.json").read_text())
    assert facts["precision"] == precision
    assert facts["inputs"] == ["input_ids", "attention_mask", "token_type_ids"]
    assert manifest_of(tiny_bert) == []


@pytest.mark.slow
def test_a_quantized_file_is_smaller(tiny_model, tmp_path):
    sizes = {}
    for scheme in ("fp32", "int8-weight", "int4-weight"):
        # Constants that are small the exporter computes with, and writes what it gets.
        model = tiny_model("bert", hidden_size=256, intermediate_size=512, num_hidden_layers=1)
        if scheme != "fp32":
            quantize_(model, scheme)
        write_onnx(model, tmp_path)
        sizes[scheme] = sum(
            onnx.numpy_helper.to_array(one).nbytes
            for one in onnx.load(tmp_path / "model.onnx").graph.initializer
        )
    assert sizes["int8-weight"] < 0.29 * sizes["fp32"]
    assert sizes["int4-weight"] < 0.20 * sizes["fp32"]


def test_tied_embeddings_are_stored_once(batches, tmp_path, torch_logits):
    config = AutoConfig.for_model(
        "gpt2", n_embd=32, n_layer=1, n_head=4, n_positions=64, vocab_size=1000,
        bos_token_id=1, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    quantize_(model, "int8-dynamic")
    found = export_model(model, tmp_path, "onnx", examples=batches)
    assert found.equal_predictions == 1
    written = onnx.load(tmp_path / "model.onnx")
    shapes = [tuple(one.dims) for one in written.graph.initializer]
    assert sum(sorted(shape) == [32, 1000] for shape in shapes) == 1


def test_no_two_quantized_weights_share_zero_points(tiny_bert, batches, tmp_path):
    config = QuantizationConfig("int8-static", full_range=True)
    quantize_(tiny_bert, config, calibration_batches=batches)
    write_onnx(tiny_bert, tmp_path)
    graph = onnx.load(tmp_path / "model.onnx").graph
    stored = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
    zero_points = [
        node.input[2]
        for node in graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in stored
    ]
    assert len(set(zero_points)) == len(zero_points) > 6
    assert all(not stored[name].any() for name in zero_points)
    assert set(stored) <= {name for node in graph.node for name in node.input}
