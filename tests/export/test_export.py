"""Writing, comparing and describing an export, in whatever format."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch

from lightning_compress import quantize_
from lightning_compress.errors import InputError
from lightning_compress.export import ExportOptions, export_model
from lightning_compress.export.onnx import OnnxProgram

from .edits import slow


def example_of(folder):
    """The Python example in an export's README."""
    return re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)[0]


@pytest.mark.parametrize("format", ["onnx", *slow("openvino", "executorch", "aotinductor")])
def test_the_example_in_the_readme_runs(
    format, tiny_model, text_files, batches, torch_logits, tmp_path
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
    wanted = torch_logits(model, [tokenizer(["A fine film."], return_tensors="pt")])[0][0]
    numbers = [float(one) for one in re.findall(r"-?\d+\.\d+(?:e-?\d+)?", done.stdout)]
    assert numbers == pytest.approx(wanted.tolist(), abs=1e-3)


def test_an_export_beyond_the_tolerance_is_not_kept(tiny_bert, batches, tmp_path, monkeypatch):
    def other(self, loaded):
        return torch.from_numpy(self._session.run(["logits"], loaded)[0]) + 1e-3

    monkeypatch.setattr(OnnxProgram, "__call__", other)
    with pytest.raises(InputError, match=r"differ by up to 0\.001 \(at most 0\.0001\)"):
        export_model(tiny_bert, tmp_path / "out", "onnx", examples=batches)
    assert list(tmp_path.iterdir()) == []


def test_invalid_options_are_refused_and_nothing_is_written(
    tiny_model, batches, tmp_path, monkeypatch
):
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
    refused("--format openvino has no option signed", format="openvino", signed=True)
    refused("signed: only int8-dynamic and int8-static quantize activations", signed=True)
    refused("max_batch_size must be at least 1", max_batch_size=0)
    refused("mine exists: choose another folder or add --overwrite", folder="mine")
    refused("mine holds files and no export", folder="mine", overwrite=True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refused(r"needs onnx and onnxscript and onnxruntime: pip install 'lightning-compress\[onnx\]'")
    assert [one.name for one in tmp_path.iterdir()] == ["mine"]
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep me"


def test_an_older_export_is_replaced(tiny_bert, batches, tmp_path):
    export_model(tiny_bert, tmp_path / "out", "onnx", examples=batches)
    (tmp_path / "out" / "notes.txt").touch()
    facts = json.loads((tmp_path / "out/export.json").read_text())
    written = {path.name for path in (tmp_path / "out").iterdir()} - {"notes.txt"}
    assert set(facts["files"]) == written
    (tmp_path / "out" / "old.onnx").touch()
    facts["files"].append("old.onnx")
    (tmp_path / "out/export.json").write_text(json.dumps(facts))
    export_model(
        tiny_bert, tmp_path / "out", "onnx", examples=batches,
        options=ExportOptions(precision="fp16"), overwrite=True,
    )  # fmt: skip
    assert not (tmp_path / "out" / "old.onnx").exists()
    assert (tmp_path / "out" / "notes.txt").exists()
    assert json.loads((tmp_path / "out/export.json").read_text())["precision"] == "fp16"
