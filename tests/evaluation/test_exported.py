"""Rows of runtimes that a model is exported to, and what becomes of processes that go wrong."""

import importlib.util
import os
import signal
import subprocess
import sys
import time

import pytest

from lightning_compress.evaluation.benchmark import benchmark
from lightning_compress.evaluation.examples import examples_of
from lightning_compress.evaluation.report.rendering import markdown, rich_table
from lightning_compress.evaluation.runtimes.exported import ExportedRuntime
from lightning_compress.evaluation.runtimes.subprocess_worker import (
    SubprocessModel,
    Worker,
    WorkerError,
)
from lightning_compress.evaluation.settings import BenchmarkSettings


class Fragile:
    def __init__(self, number):
        if number < 0:
            raise ValueError(f"no number {number}\nand more lines")
        self.number = number

    def add(self, other):
        os.write(1, b"chatter")
        return self.number + other

    def fail(self):
        raise RuntimeError("cannot")

    def crash(self):
        os.kill(os.getpid(), signal.SIGSEGV)

    def hang(self):
        time.sleep(60)


def test_a_worker_calls_and_tells_what_went_wrong(capfd):
    worker = Worker(Fragile, 3, timeout_s=60)
    assert worker.call("add", 4) == 7
    with pytest.raises(WorkerError, match=r"^cannot$"):
        worker.call("fail")
    assert worker.call("add", 5) == 8  # it lives on
    with pytest.raises(WorkerError, match="its process died, killed by signal 11"):
        worker.call("crash")
    with pytest.raises(WorkerError, match="its process died"):
        worker.call("add", 5)
    worker.close()
    assert capfd.readouterr().out == ""


def test_a_worker_that_cannot_be_built_or_hangs():
    with pytest.raises(WorkerError, match=r"^no number -1$"):
        Worker(Fragile, -1, timeout_s=60)
    worker = Worker(Fragile, 3, timeout_s=120)
    worker._timeout_s = 0.2
    start = time.perf_counter()
    with pytest.raises(WorkerError, match=r"it took longer than 0\.2 s"):
        worker.call("hang")
    assert time.perf_counter() - start < 50  # it sleeps for 60
    assert not worker._process.is_alive()


def test_a_worker_does_not_run_the_script_that_it_is_started_from(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "print('here', flush=True)\n"
        "from lightning_compress.evaluation.runtimes.subprocess_worker import Worker\n"
        "worker = Worker(dict, {'a': 1}, timeout_s=60)\n"
        "print(worker.call('get', 'a'))\n"
        "worker.close()\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert done.stdout == "here\n1\n"


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


@pytest.mark.parametrize(
    "runtime",
    [
        "onnxruntime",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("openvino", "aotinductor")),
    ],
)
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
