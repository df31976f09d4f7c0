"""What docs/serving.md tells users to run and to write, done with exports of a tiny model."""

import json
import re
import shlex
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import pairwise
from typing import Any

import numpy
import onnx
import openvino
import pytest
import torch
import transformers
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from safetensors import safe_open
from transformers import BertTokenizer

from lightning_compress import remove_neurons_
from lightning_compress.export import ExportOptions, export_model
from lightning_compress.export.openvino import inference_options
from lightning_compress.export.tracing import Traced, input_names
from lightning_compress.saving import load_compressed, save_compressed
from lightning_compress.tasks import TASKS, declare_task_

from ..families import randomize_, tiny_config, tiny_model
from ..test_docs import BLOCK, ROOT, region

TEXTS = ["A fine film.", "A waste of time."]
PAGE = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")


def block(language, word):
    """The page's block in a language that has a word in it."""
    found = [one["text"] for one in BLOCK.finditer(PAGE) if one["language"] == language]
    (only,) = (text for text in found if word in text)
    return only


def commands(program):
    """The arguments of the page's commands that run a program."""
    shell = "\n".join(one["text"] for one in BLOCK.finditer(PAGE) if one["language"] == "sh")
    lines = shell.replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line.startswith(f"{program} ")]


def executed(code):
    names: dict[str, Any] = {}
    exec(compile(code, "serving.md", "exec"), names)
    return names


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved model, whose labels have names, and its ONNX export, under the names of the page."""
    folder = tmp_path_factory.mktemp("serving")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "fine", "film", "of", "time"]
    (folder / "vocab.txt").write_text("\n".join(words))
    tokenizer = BertTokenizer(str(folder / "vocab.txt"))
    model = randomize_(tiny_model("bert", num_hidden_layers=1))
    model.config.id2label = {0: "negative", 1: "positive"}
    model.config.label2id = {"negative": 0, "positive": 1}
    batch = dict(tokenizer(TEXTS, padding=True, return_tensors="pt"))
    export_model(model, folder / "exported", "onnx", examples=[batch], tokenizer=tokenizer)
    save_compressed(model, folder / "saved", tokenizer)
    remove_neurons_(model, {0: [0]})
    save_compressed(model, folder / "pruned", tokenizer)
    return folder


def lay_out(folder, name):
    """Run the page's commands that copy files of an export to where a server looks for them."""
    (copy,) = (one for one in commands("cp") if one[1].startswith(f"{name}/"))
    (make,) = (one for one in commands("mkdir") if one[-1] == copy[-1])
    for command in (make, copy):
        subprocess.run(command, cwd=folder, check=True)
    return folder / copy[-1]


@pytest.fixture
def expected(folder, monkeypatch):
    """PyTorch's logits of the page's texts; the page's code runs in the folder."""
    monkeypatch.chdir(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained("saved")
    tokenizer = transformers.AutoTokenizer.from_pretrained("saved")
    with torch.no_grad():
        logits = model(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits
    assert (logits[0] - logits[1]).abs().max() > 0.01
    return logits.numpy()


def test_onnx_runtime(expected):
    names = executed(block("python", "InferenceSession"))
    numpy.testing.assert_allclose(names["logits"], expected, rtol=0, atol=1e-4)


def test_the_versions_of_onnx_files(folder):
    (versions,) = re.findall(r"opset (\d+) and IR version (\d+)", PAGE)
    written = onnx.load(folder / "exported" / "model.onnx")
    assert [written.opset_import[0].version, written.ir_version] == [int(v) for v in versions]


def server_of(model):
    """An HTTP server with the KServe API's inference on 127.0.0.1, which answers one request."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert self.path == "/v2/models/sentiment/infer"
            given = {}
            for one in body["inputs"]:
                assert one["datatype"] == "INT64"
                values = numpy.array(one["data"], dtype=numpy.int64)
                given[one["name"]] = values.reshape(one["shape"])
            assert given.keys() == {one.any_name for one in model.inputs}
            found = model(given)["logits"]
            output = {
                "name": "logits", "datatype": "FP32", "shape": found.shape,
                "data": found.flatten().tolist(),
            }  # fmt: skip
            answer = json.dumps({"model_name": "sentiment", "outputs": [output]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_):
            pass

    return HTTPServer(("127.0.0.1", 0), Handler)


@pytest.mark.slow
def test_openvino_model_server_and_the_request(folder, expected):
    command, *_ = (one for one in commands("docker") if "openvino/model_server:latest" in one)
    options = dict(pairwise(command))
    assert options["--model_name"] == "sentiment"
    assert options["--model_path"] == "/models/sentiment"
    plugin = json.loads(options["--plugin_config"])
    assert plugin == inference_options("fp32")
    model = load_compressed("saved")
    examples = [{"input_ids": torch.ones(2, 5, dtype=torch.long)}]
    export_model(model, "exported-openvino", "openvino", examples=examples)
    version = lay_out(folder, "exported-openvino")
    assert version.parent == folder / "models" / "sentiment"
    (file,) = version.glob("*.xml")
    read = openvino.Core().read_model(file)
    assert all(str(one.partial_shape) == "[?,?]" for one in read.inputs)
    with server_of(openvino.compile_model(read, "CPU", plugin)) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        code = block("python", "urlopen")
        names = executed(code.replace("localhost:8000", f"127.0.0.1:{server.server_port}"))
        thread.join()
    found = numpy.reshape(names["output"]["data"], names["output"]["shape"])
    numpy.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def model_configuration():
    """An empty message of the fields of Triton's ModelConfig that the page uses.

    Source: https://github.com/triton-inference-server/common/blob/main/protobuf/model_config.proto
    """
    kinds = {"string": 9, "int32": 5, "int64": 3}
    file = descriptor_pb2.FileDescriptorProto(name="page.proto", package="page", syntax="proto3")
    types = file.enum_type.add(name="DataType")
    for number, name in ((0, "TYPE_INVALID"), (5, "TYPE_INT64"), (10, "TYPE_FP16")):
        types.value.add(name=name, number=number)
    types.value.add(name="TYPE_FP32", number=11)
    messages = {
        "Tensor": {"name": "string", "data_type": "DataType", "dims": "int64*"},
        "Value": {"string_value": "string"},
        "Parameter": {"key": "string", "value": "Value"},
        "Batching": {"max_queue_delay_microseconds": "int64"},
        "ModelConfig": {
            "name": "string", "backend": "string", "max_batch_size": "int32", "input": "Tensor*",
            "output": "Tensor*", "dynamic_batching": "Batching", "parameters": "Parameter*",
        },
    }  # fmt: skip
    for message, fields in messages.items():
        made = file.message_type.add(name=message)
        for number, (name, kind) in enumerate(fields.items(), 1):
            field = made.field.add(name=name, number=number, label=3 if kind[-1] == "*" else 1)
            kind = kind.rstrip("*")
            field.type = kinds.get(kind, 14 if kind == "DataType" else 11)
            if kind not in kinds:
                field.type_name = f".page.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("page.ModelConfig"))()


def tensors(configured):
    """Names, types and shapes of a configuration, with the batch in front."""
    names = {5: "INT64", 10: "FLOAT16", 11: "FLOAT"}
    return {one.name: (names[one.data_type], [-1, *one.dims]) for one in configured}


def written_tensors(values):
    return {
        one.name: (
            onnx.TensorProto.DataType.Name(one.type.tensor_type.elem_type),
            [
                size.dim_value if size.HasField("dim_value") else -1
                for size in one.type.tensor_type.shape.dim
            ],
        )
        for one in values
    }


def test_the_configuration_of_triton(folder):
    found = text_format.Parse(block("protobuf", "max_batch_size"), model_configuration())
    assert found.max_batch_size > 0
    version = lay_out(folder, "exported")
    assert version.parent == folder / "repository" / found.name
    written = onnx.load(version / "model.onnx")
    assert tensors(found.input) == written_tensors(written.graph.input)
    assert tensors(found.output) == written_tensors(written.graph.output)


@pytest.mark.slow
def test_logits_in_fp16_are_float16(tmp_path, batches):
    model = tiny_model("bert")
    options = ExportOptions(precision="fp16")
    export_model(model, tmp_path / "half", "onnx", examples=batches, options=options)
    written = onnx.load(tmp_path / "half" / "model.onnx")
    assert written_tensors(written.graph.output) == {"logits": ("FLOAT16", [-1, 2])}


ROWS = re.findall(r"^\| (`.*?) \| `\[ (.*) \]` \|$", region("serving.md", "dims"), re.MULTILINE)


@pytest.mark.parametrize("task", sorted({task.name for task in TASKS}))
def test_the_dims_of_each_task(task):
    (dims,) = (dims.split(", ") for cell, dims in ROWS if f"`{task}`" in cell)
    auto_class = next(one.auto_class for one in TASKS if one.name == task)
    family = {"causal-lm": "gpt2", "image-classification": "vit"}.get(task, "bert")
    count = {"question-answering": 0, "causal-lm": 0, "masked-lm": 0, "reranking": 1}.get(task, 3)
    options = {"num_labels": count} if count else {}
    model = getattr(transformers, auto_class).from_config(tiny_config(family, **options)).eval()
    declare_task_(model, [task])
    names = input_names(model)
    for length in (5, 9):
        ids = torch.ones(2, length, dtype=torch.long)
        given = [torch.zeros(2, 3, 8, 8) if name == "pixel_values" else ids for name in names]
        shape = Traced(model, names)(*given).shape
        sizes = {"-1": length, "C": 3, "V": 100, "H": 32}
        assert list(shape) == [2, *(sizes.get(one) or int(one) for one in dims)]


def test_what_text_embeddings_inference_needs(folder):
    (needs,) = re.findall(r"^\| needs in `config.json` \| (.*?) \| (.*?) \|$", PAGE, re.MULTILINE)
    for name, cell in zip(("exported", "saved"), needs, strict=True):
        fields = re.findall(r"`(\w+)`", cell)
        config = json.loads((folder / name / "config.json").read_text())
        assert all(config.get(field) is not None for field in fields), name
        assert config["architectures"] == ["BertForSequenceClassification"]
        assert (folder / name / "tokenizer.json").is_file()
    assert (folder / "exported" / "model.onnx").is_file()
    with safe_open(folder / "saved" / "model.safetensors", "pt") as file:
        assert "classifier.weight" in set(file.keys())
    assert not (folder / "pruned" / "model.safetensors").exists()


@pytest.mark.parametrize("family", ["distilbert", "gpt2"])
def test_families_that_text_embeddings_inference_does_not_read(family):
    written = tiny_config(family).to_dict()
    needed = {"hidden_size", "num_hidden_layers", "max_position_embeddings"}
    assert not needed <= set(written)
