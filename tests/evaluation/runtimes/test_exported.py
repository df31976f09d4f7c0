"""Rows of exported models."""

import importlib.util

import pytest

from lightning_compress.evaluation.benchmark import benchmark
from lightning_compress.evaluation.examples import examples_of
from lightning_compress.evaluation.report.rendering import markdown, rich_table
from lightning_compress.evaluation.runtimes.exported import ExportedRuntime
from lightning_compress.evaluation.runtimes.subprocess_worker import (
    SubprocessModel,
)
from lightning_compress.evaluation.settings import BenchmarkSettings


def settings(*runtimes, precisions=("fp32",)):
    return BenchmarkSettings(
        runtimes=runtimes, precisions=precisions, devices=["cpu"], seconds=0.01, batch_sizes=[4],
        latency_examples=3,
    )  # fmt: skip


def measured(model, toy_data, *runtimes, **options):
    examples = examples_of(toy_data.test_dataloader())
    return benchmark(
        {"dense": model}, examples, settings(*runtimes, **options), run_name="x", task_name="toy"
    )


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "aotinductor"])
def test_rows_of_exported_models_are_as_whole_as_others(runtime, tiny_bert, toy_data):
    report = measured(tiny_bert, toy_data, "eager", runtime)
    eager, *others = report.rows
    for row in others:
        assert row.notes == []
        assert row.metrics == eager.metrics
        assert row.latency is not None
        assert row.throughput is not None
        assert report.speedup(row) is not None
        assert report.retention(row) == 1
        peak, size = row.measured["peak_memory_bytes"], row.measured["size_bytes"]
        assert peak is None or peak > 0
        most = {"aotinductor": 40}.get(runtime, 6)  # compiled code, whatever the model's size
        assert 0.9 < size / sum(p.nbytes for p in tiny_bert.parameters()) < most
    assert "is run in a process of its own" in markdown(report)


def test_what_is_not_there_is_a_row_with_the_reason(tiny_bert, toy_data, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "openvino" else found(name)
    )
    names = ("onnxruntime", "openvino", "tensorrt")
    report = measured(tiny_bert, toy_data, *names, precisions=["bf16"])
    assert [(row.failure or "").split(":")[0] for row in report.rows] == [
        "onnxruntime has no bf16",
        "openvino needs openvino",
        "tensorrt needs trtexec",
    ]
    assert all(row.latency is None for row in report.rows)
    # The brackets of an extra are not taken for colours.
    assert r"lightning-compress\[openvino]" in str(rich_table(report).caption)


def test_none_stands_for_all_runtimes_that_are_installed(monkeypatch):
    there = {"onnx", "onnxscript", "onnxruntime", "executorch"}
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: object() if name in there else None
    )
    installed = ["eager", "compile", "onnxruntime", "aotinductor"]
    assert BenchmarkSettings(runtimes=None).runtime_names() == installed
    assert BenchmarkSettings(runtimes=["tensorrt"]).runtime_names() == ["tensorrt"]


@pytest.mark.slow
def test_a_process_that_dies_takes_no_other_row_along(tiny_bert, toy_data, monkeypatch):
    prepared = ExportedRuntime.prepare
    deaths = {"onnxruntime": "size_bytes", "openvino": "peak_memory_bytes"}

    def prepare(self, *arguments):
        made = prepared(self, *arguments)
        assert isinstance(made, SubprocessModel)
        before = getattr(made, deaths[self.name])

        def and_die(*given):
            value = before(*given)
            made._worker._process.kill()
            made._worker._process.join()
            return value

        monkeypatch.setattr(made, deaths[self.name], and_die)
        return made

    monkeypatch.setattr(ExportedRuntime, "prepare", prepare)
    report = measured(tiny_bert, toy_data, "eager", "onnxruntime", "openvino")
    eager, onnx, openvino = report.rows
    assert eager.latency is not None
    assert eager.throughput is not None
    for row in (onnx, openvino):  # one dies before it is timed, the other as it is about to be
        assert "its process died" in (row.failure or "")
        assert row.latency is None
        assert row.metrics == eager.metrics
