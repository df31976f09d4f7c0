"""The table of runtimes, and what is derived from it."""

from typing import get_args

from lightning_compress.evaluation import benchmark
from lightning_compress.evaluation.examples import examples_of
from lightning_compress.evaluation.runtimes.eager import EagerRuntime
from lightning_compress.evaluation.runtimes.runtime import RuntimeOptions
from lightning_compress.evaluation.runtimes.table import RUNTIMES, RuntimeName, available_runtimes
from lightning_compress.evaluation.settings import BenchmarkSettings
from lightning_compress.export.formats import FORMATS


def test_the_literal_and_the_docstring_name_the_runtimes_of_the_table():
    assert list(get_args(RuntimeName)) == list(RUNTIMES)
    assert all(f"``{name}``" in (BenchmarkSettings.__doc__ or "") for name in RUNTIMES)


def test_each_runtime_has_the_name_of_its_entry():
    built = {name: runtime(RuntimeOptions()) for name, runtime in RUNTIMES.items()}
    assert all(runtime.name == name for name, runtime in built.items())
    assert all(runtime.devices() for runtime in built.values())


def test_every_export_format_is_a_runtime():
    assert {format.runtime for format in FORMATS.values()} <= set(RUNTIMES)
    assert len({format.runtime for format in FORMATS.values()}) == len(FORMATS)


class Twice(EagerRuntime):
    name = "twice"


def test_a_new_runtime_is_a_class_and_an_entry(tiny_bert, toy_data, monkeypatch):
    monkeypatch.setitem(RUNTIMES, "twice", Twice)
    settings = BenchmarkSettings(
        runtimes=["eager", "twice"],  # type: ignore[list-item]
        precisions=["fp32"], devices=["cpu"], seconds=0.001, batch_sizes=[4], latency_examples=3,
    )  # fmt: skip
    examples = examples_of(toy_data.test_dataloader())
    report = benchmark({"dense": tiny_bert}, examples, settings, run_name="x", task_name="toy")
    assert [row.runtime for row in report.rows] == ["eager", "twice"]
    assert report.rows[0].metrics == report.rows[1].metrics
    assert "twice" in available_runtimes()
