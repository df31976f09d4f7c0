"""Every kind of compressed model, of every family, in other runtimes."""

import ctypes
import importlib.machinery
import json
import math
import os
import re
import subprocess
import sys
import types
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lightning_compress import quantize_, remove_heads_, remove_layers_, remove_neurons_
from lightning_compress.errors import InputError
from lightning_compress.export import ExportOptions, export_model, tensorrt
from lightning_compress.export.formats import FORMATS
from lightning_compress.export.onnx import OnnxProgram, write_onnx
from lightning_compress.export.onnx_layers import OPSET, in_onnx_forms
from lightning_compress.export.tensorrt import TensorRtProgram
from lightning_compress.export.verify import Agreement, agreement_of, require_within_tolerance
from lightning_compress.models import manifest_of, set_masks_
from lightning_compress.models.modeling_quantized import QuantizedLinear
from lightning_compress.quantization import QuantizationConfig
from lightning_compress.quantization.modules import pack_weights_
from lightning_compress.substitution.edit import substitute_layers_

from ..families import SUBSTITUTABLE


def slow(*values):
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


FAST = ["bert", "gpt2"]
FAMILIES = [*FAST, *slow(*(family for family in SUBSTITUTABLE if family not in FAST))]


def all_at_once(model):
    """Heads, neurons and a layer are gone, another is a compact block, and some weights are 0."""
    remove_heads_(model, {0: [1]})
    remove_neurons_(model, {0: range(40)})
    remove_layers_(model, [3])
    substitute_layers_(model, groups=[[1]], width=16, depth=1)
    torch.nn.init.normal_(model.get_parameter(last_up(model)), std=0.1)  # it starts with zeros
    set_masks_(model, {last_up(model): torch.rand(32, 16) > 0.5})


def last_up(model):
    return next(name for name, _ in model.named_parameters() if name.endswith(".up.weight"))


@pytest.mark.parametrize("family", FAMILIES)
def test_onnx_says_the_same_of_a_model_that_has_seen_every_edit(
    family, tiny_model, batches, said, tmp_path
):
    torch.manual_seed(0)
    model = tiny_model(family, num_hidden_layers=4)
    all_at_once(model)
    config = QuantizationConfig("int8-static", skip_modules=["score"] if family == "gpt2" else [])
    quantize_(model, config, calibration_batches=batches[:1])
    before = said(model, batches)
    found = export_model(model, tmp_path / "out", "onnx", examples=batches)
    # The steps of inputs are whole multiples there and here: nothing may fall between two.
    assert found.equal_predictions == 1
    assert found.largest_difference < 1e-4
    program = OnnxProgram(tmp_path / "out", threads=1)
    for batch, wanted in zip(batches, before, strict=True):
        torch.testing.assert_close(program(program.load(batch)), wanted, rtol=0, atol=1e-4)
    # The model is as it was, and the file computes with whole numbers.
    for one, other in zip(said(model, batches), before, strict=True):
        assert torch.equal(one, other)
    written = onnx.load(tmp_path / "out" / "model.onnx")
    kinds = [node.op_type for node in written.graph.node]
    assert kinds.count("QuantizeLinear") >= 12
    types = {onnx.TensorProto.DataType.Name(one.data_type) for one in written.graph.initializer}
    assert {"INT8", "UINT8"} <= types


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


def test_steps_of_each_token_survive_what_the_runtime_fuses(tmp_path):
    layer = QuantizedLinear(
        64, 48, bits=8, group_size=0, activations="dynamic", smoothing=False, bias=True
    ).eval()
    generator = torch.Generator().manual_seed(0)
    pack_weights_(layer, torch.randn(48, 64, generator=generator))
    rows = torch.randn(3, 5, 64, generator=generator) * torch.logspace(-3, 3, 5).view(1, 5, 1)
    model = torch.nn.Sequential(layer).eval()
    wanted = model(rows)
    with in_onnx_forms(model, "onnxruntime"):
        torch.onnx.export(
            model.eval(),
            (rows,),
            tmp_path / "one.onnx",
            dynamo=True,
            opset_version=OPSET,
            verbose=False,
        )
    session = onnxruntime.InferenceSession(tmp_path / "one.onnx")  # with all that it fuses
    [found] = session.run(None, {session.get_inputs()[0].name: rows.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), wanted, rtol=1e-4, atol=1e-6)


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


@pytest.mark.slow
@pytest.mark.parametrize("family", ["roberta", "distilbert", "electra"])
def test_onnx_and_openvino_of_plain_families(family, tiny_model, batches, tmp_path):
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
def test_openvino(precision, tiny_bert, batches, tmp_path):
    options = ExportOptions(precision=precision, calibration_batches=batches)
    found = export_model(tiny_bert, tmp_path, "openvino", examples=batches, options=options)
    bound = {"fp32": 1e-5, "int8-static": 1e-3, "int8-weight": 1e-5}.get(precision, 2e-2)
    assert found.largest_difference < bound


@pytest.mark.slow
def test_nncf_finds_its_own_steps(tiny_bert, batches, tmp_path):
    options = ExportOptions(precision="int8-static", calibration_batches=batches, nncf=True)
    found = export_model(tiny_bert, tmp_path, "openvino", examples=batches, options=options)
    assert 0 < found.largest_difference < 0.1
    assert "FakeQuantize" in (tmp_path / "openvino_model.xml").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "int8-dynamic", "int8-static"])
@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "electra", "gpt2"])
def test_executorch(family, precision, tiny_model, batches, tmp_path):
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
def test_executorch_of_a_model_that_has_seen_every_edit(family, tiny_model, batches, tmp_path):
    pytest.importorskip("executorch")
    torch.manual_seed(0)
    model = tiny_model(family, num_hidden_layers=4)
    all_at_once(model)
    options = ExportOptions(max_batch_size=4)
    found = export_model(model, tmp_path, "executorch", examples=batches, options=options)
    assert found.largest_difference < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "int8-dynamic"])
def test_aotinductor(precision, tiny_bert, batches, tmp_path):
    options = ExportOptions(precision=precision)
    found = export_model(tiny_bert, tmp_path, "aotinductor", examples=batches, options=options)
    assert found.largest_difference < 1e-5


def test_a_language_model_keeps_its_tied_words_once(batches, tmp_path, said):
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


def example_of(folder):
    """The Python example in an export's README."""
    return re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)[0]


@pytest.mark.parametrize("format", ["onnx", *slow("openvino", "executorch", "aotinductor")])
def test_the_example_in_the_readme_runs_as_it_stands(
    format, tiny_model, text_files, batches, said, tmp_path
):
    if format == "executorch":
        pytest.importorskip("executorch")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(text_files / "tokenizer")
    model = tiny_model("bert", vocab_size=len(tokenizer))
    known = [{"input_ids": batches[0]["input_ids"] % len(tokenizer)}]
    export_model(model, tmp_path / "out", format, examples=known, tokenizer=tokenizer)
    example = example_of(tmp_path / "out")
    assert len(example.splitlines()) == 5
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-c", example], cwd=tmp_path / "out", env=environment,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    wanted = said(model, [tokenizer(["A fine film."], return_tensors="pt")])[0][0]
    numbers = [float(one) for one in re.findall(r"-?\d+\.\d+(?:e-?\d+)?", done.stdout)]
    assert numbers == pytest.approx(wanted.tolist(), abs=1e-3)


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
    program.write_text('#!/bin/sh\ncp model.onnx model.engine && echo "$@" > said\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return program


def test_tensorrt_gets_the_command_for_its_engine(tiny_bert, batches, tmp_path):
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


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8-static"])
def test_tensorrt_builds_its_engine_and_runs_it(precision, trtexec, tiny_bert, batches, tmp_path):
    options = ExportOptions(precision, calibration_batches=batches, max_batch_size=8)
    out = tmp_path / "out"
    found = export_model(tiny_bert, out, "tensorrt", examples=batches, options=options)
    assert found.examples == 8
    assert found.largest_difference < (1e-3 if precision == "fp16" else 1e-4)
    [command] = re.findall(r"^trtexec (.*)$", (out / "README.md").read_text(), re.M)
    assert (out / "said").read_text().strip() == command
    # What is compared with PyTorch is the engine.
    assert isinstance(FORMATS["tensorrt"].open(out, ["input_ids"], precision, 1), TensorRtProgram)


def test_an_engine_that_fails_leaves_nothing(trtexec, tiny_bert, batches, tmp_path):
    trtexec.write_text('#!/bin/sh\necho "[E] no kernel"; exit 1\n')
    with pytest.raises(InputError, match=r"trtexec failed: \[E\] no kernel"):
        export_model(tiny_bert, tmp_path / "not", "tensorrt", examples=batches)
    assert not (tmp_path / "not").exists()


def test_a_file_that_says_something_else_is_not_kept(tiny_bert, batches, tmp_path, monkeypatch):
    def other(self, loaded):
        return torch.from_numpy(self._session.run(["logits"], loaded)[0]) + 1e-3

    monkeypatch.setattr(OnnxProgram, "__call__", other)
    with pytest.raises(InputError, match=r"differ by up to 0\.001 \(at most 0\.0001\)"):
        export_model(tiny_bert, tmp_path / "out", "onnx", examples=batches)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("agreement", "precision", "fine"),
    [
        (Agreement(8, 9e-5, 0.5, 1.0), "fp32", True),
        (Agreement(8, 2e-4, 0.5, 1.0), "fp32", False),
        (Agreement(8, 2e-4, 50.0, 1.0), "fp32", True),  # in proportion
        (Agreement(1000, 1e-6, 0.5, 0.998), "fp32", False),
        (Agreement(1000, 0.09, 0.5, 0.98), "int8-static", True),
        (Agreement(1000, 0.2, 0.5, 0.98), "int8-static", False),
        (Agreement(1000, 0.09, 0.5, 0.96), "int8-static", False),
        (Agreement(8, float("inf"), 0.5, 1.0), "int8-static", False),
        (Agreement(8, 1e-6, 0.5, None), "fp32", True),
    ],
)
def test_bounds(agreement, precision, fine):
    if fine:
        require_within_tolerance(agreement, precision)
    else:
        with pytest.raises(InputError, match="outputs differ from PyTorch's on"):
            require_within_tolerance(agreement, precision)


class Constant:
    """A program that always says the same."""

    def __init__(self, logits):
        self.logits = torch.tensor(logits)

    def load(self, batch):
        return batch

    def __call__(self, loaded):
        return self.logits


def test_agreement_leaves_padding_out_and_finds_what_is_not_a_number():
    mask = torch.tensor([[1, 1, 0]])
    batch = {"input_ids": torch.tensor([[5, 6, 0]]), "attention_mask": mask}
    wanted = torch.tensor([[[1.0, 2.0], [3.0, 1.0], [9.0, 0.0]]])
    found = agreement_of(
        Constant([[[1.0, 2.5], [3.0, 4.0], [0.0, 70.0]]]), lambda _: wanted, [batch]
    )
    assert found == Agreement(1, 3.0, 3.0, 0.5)
    nothing = agreement_of(Constant([[float("nan"), 0.0]]), lambda _: torch.zeros(1, 2), [batch])
    assert nothing.largest_difference == float("inf")


def test_bad_choices_are_refused_and_nothing_is_written(tiny_model, batches, tmp_path, monkeypatch):
    model, quantized = tiny_model("bert"), tiny_model("bert")
    quantize_(quantized, "int8-dynamic")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep me")

    def refused(match, *, what=model, format="onnx", folder="out", overwrite=False, **options):
        with pytest.raises(InputError, match=match):
            export_model(
                what, tmp_path / folder, format, examples=batches,
                options=ExportOptions(**options), overwrite=overwrite,
            )  # fmt: skip

    refused("onnx has no bf16: choose from fp32, fp16", precision="bf16")
    refused("is quantized to int8-dynamic and cannot be exported in fp32", what=quantized)
    refused(
        "int8-static needs calibration examples: set calibration_batches", precision="int8-static"
    )
    refused("--format onnx has no option nncf: leave it out", nncf=True)
    refused("nncf quantizes to --precision int8-static only", format="openvino", nncf=True)
    refused("--format onnx has no option dry_run: leave it out", dry_run=True)
    refused("max_batch_size must be at least 1", max_batch_size=0)
    refused("mine exists: choose another folder or add --overwrite", folder="mine")
    refused("mine holds something that is not an export", folder="mine", overwrite=True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refused(r"needs onnx and onnxscript and onnxruntime: pip install 'lightning-compress\[onnx\]'")
    assert [one.name for one in tmp_path.iterdir()] == ["mine"]
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep me"


def test_an_older_export_is_replaced_whole(tiny_bert, batches, tmp_path):
    export_model(tiny_bert, tmp_path / "out", "onnx", examples=batches)
    (tmp_path / "out" / "old").touch()
    export_model(
        tiny_bert, tmp_path / "out", "onnx", examples=batches,
        options=ExportOptions(precision="fp16"), overwrite=True,
    )  # fmt: skip
    assert not (tmp_path / "out" / "old").exists()
    assert json.loads((tmp_path / "out/export.json").read_text())["precision"] == "fp16"


@pytest.mark.parametrize("quantized_before", [False, True])
def test_tensorrt_gets_whole_numbers_counted_from_zero(
    quantized_before, tiny_bert, batches, said, tmp_path
):
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


def test_tensorrt_refuses_steps_that_begin_elsewhere(tiny_bert, batches, tmp_path):
    quantize_(tiny_bert, "int8-static", calibration_batches=batches)
    options = ExportOptions("int8-static", dry_run=True)
    with pytest.raises(InputError, match="quantize with symmetric: true"):
        export_model(tiny_bert, tmp_path / "out", "tensorrt", examples=batches, options=options)
    assert list(tmp_path.iterdir()) == []
