"""TensorRT, with a stand-in for its tools."""

import ctypes
import importlib.machinery
import math
import os
import re
import sys
import types
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from lightning_compress import quantize_
from lightning_compress.errors import InputError
from lightning_compress.export import ExportOptions, export_model, tensorrt
from lightning_compress.export.formats import FORMATS
from lightning_compress.export.tensorrt import TensorRtProgram
from lightning_compress.quantization import QuantizationConfig


class Engine:
    """What TensorRT's Python package makes of an engine, which is the ONNX file here."""

    def __init__(self, content):
        self.session = onnxruntime.InferenceSession(content)
        self.shapes, self.addresses = {}, {}
        self.logits = np.zeros(0)

    def create_execution_context(self):
        return self

    def get_tensor_dtype(self, name):
        [output] = self.session.get_outputs()
        assert name == output.name
        return {"tensor(float16)": "half", "tensor(float)": "float"}[output.type]

    def set_input_shape(self, name, shape):
        self.shapes[name] = shape

    def set_tensor_address(self, name, address):
        self.addresses[name] = address

    def get_tensor_shape(self, name):
        given = {
            name: np.ctypeslib.as_array(
                (ctypes.c_int64 * math.prod(shape)).from_address(self.addresses[name])
            ).reshape(shape)
            for name, shape in self.shapes.items()
        }
        [self.logits] = self.session.run([name], given)
        return self.logits.shape

    def execute_async_v3(self, stream):
        ctypes.memmove(self.addresses["logits"], self.logits.ctypes.data, self.logits.nbytes)
        return stream == 7


@pytest.fixture
def trtexec(tmp_path, monkeypatch):
    """A stand-in for TensorRT: engines are ONNX files; gives the program, to be written anew."""
    package: Any = types.ModuleType("tensorrt")
    package.__spec__ = importlib.machinery.ModuleSpec("tensorrt", None)
    package.float16, package.Logger = "half", lambda level: None
    package.Logger.ERROR = 0
    package.Runtime = lambda logger: types.SimpleNamespace(deserialize_cuda_engine=Engine)
    monkeypatch.setitem(sys.modules, "tensorrt", package)
    monkeypatch.setattr(tensorrt, "DEVICE", "cpu")
    monkeypatch.setattr(tensorrt.TensorRtFormat, "device", "cpu")
    monkeypatch.setattr(tensorrt, "_stream", lambda: 7)
    program = tmp_path / "bin" / "trtexec"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\ncp model.onnx model.engine && echo "$@" > arguments\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return program


def test_a_dry_run_writes_the_build_command(tiny_bert, batches, tmp_path):
    options = ExportOptions(precision="fp16", max_batch_size=8, dry_run=True)
    export_model(tiny_bert, tmp_path / "dry", "tensorrt", examples=batches, options=options)
    [command] = re.findall(r"^trtexec .*$", (tmp_path / "dry/README.md").read_text(), re.M)
    inputs = ("input_ids", "attention_mask", "token_type_ids")
    for bound, shape in (("min", "1x1"), ("opt", "8x64"), ("max", "8x64")):
        assert f"--{bound}Shapes=" + ",".join(f"{name}:{shape}" for name in inputs) in command
    # Precision is the file's own: TensorRT 11 has no switch for it any more.
    assert command.endswith("--stronglyTyped --noTF32")
    graph = onnx.load(tmp_path / "dry/model.onnx").graph
    kinds = {onnx.TensorProto.DataType.Name(one.data_type) for one in graph.initializer}
    assert "FLOAT16" in kinds
    assert "FLOAT" not in kinds
    options = ExportOptions(precision="fp16", max_batch_size=8)
    with pytest.raises(InputError, match="tensorrt needs trtexec: install TensorRT"):
        export_model(tiny_bert, tmp_path / "real", "tensorrt", examples=batches, options=options)


@pytest.mark.parametrize(
    "precision",
    ["fp32", *(pytest.param(p, marks=pytest.mark.slow) for p in ("fp16", "int8-static"))],
)
def test_the_engine_is_built_and_compared(precision, trtexec, tiny_bert, batches, tmp_path):
    options = ExportOptions(precision, calibration_batches=batches, max_batch_size=8)
    out = tmp_path / "out"
    found = export_model(tiny_bert, out, "tensorrt", examples=batches, options=options)
    assert found.examples == 8
    assert found.largest_difference < (1e-3 if precision == "fp16" else 1e-4)
    [command] = re.findall(r"^trtexec (.*)$", (out / "README.md").read_text(), re.M)
    assert (out / "arguments").read_text().strip() == command
    # What is compared with PyTorch is the engine.
    assert isinstance(FORMATS["tensorrt"].open(out, ["input_ids"], precision, 1), TensorRtProgram)


def test_a_failed_build_leaves_nothing(trtexec, tiny_bert, batches, tmp_path):
    trtexec.write_text('#!/bin/sh\necho "[E] no kernel"; exit 1\n')
    with pytest.raises(InputError, match=r"trtexec failed: \[E\] no kernel"):
        export_model(tiny_bert, tmp_path / "not", "tensorrt", examples=batches)
    assert not (tmp_path / "not").exists()


@pytest.mark.parametrize("quantized_before", [pytest.param(False, marks=pytest.mark.slow), True])
def test_int8_is_symmetric(quantized_before, tiny_bert, batches, torch_logits, tmp_path):
    if quantized_before:
        config = QuantizationConfig("int8-static", symmetric=True)
        quantize_(tiny_bert, config, calibration_batches=batches)
    options = ExportOptions("int8-static", calibration_batches=batches, dry_run=True)
    found = export_model(tiny_bert, tmp_path / "out", "tensorrt", examples=batches, options=options)
    assert found.largest_difference < 1e-4
    assert "--stronglyTyped" in (tmp_path / "out" / "README.md").read_text()
    graph = onnx.load(tmp_path / "out" / "model.onnx").graph
    values = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
    rounded = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    taken_back = [node for node in graph.node if node.op_type == "DequantizeLinear"]
    # Two layers of six linear ones and the pooler; queries, keys and values share their inputs.
    assert (len(rounded), len(taken_back)) == (9, 9 + 13)
    for node in rounded + taken_back:
        zero = values[node.input[2]]
        assert zero.dtype == "int8"
        assert not zero.any()
    # Nothing else is of whole numbers that it could not read.
    kinds = {values[name].dtype.name for node in graph.node for name in node.input
             if name in values and node not in taken_back + rounded}  # fmt: skip
    assert kinds <= {"float32", "int64", "bool"}


def test_asymmetric_activations_are_refused(tiny_bert, batches, tmp_path):
    quantize_(tiny_bert, "int8-static", calibration_batches=batches)
    options = ExportOptions("int8-static", dry_run=True)
    with pytest.raises(InputError, match="quantize with symmetric: true"):
        export_model(tiny_bert, tmp_path / "out", "tensorrt", examples=batches, options=options)
    assert list(tmp_path.iterdir()) == []
