"""``benchmark``: measure a saved model, compressed or any Hugging Face one, without training."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser

from lightning_compress.cli.saved_model import (
    calibration_batches_of,
    load_saved,
    model_and_data_parser,
    ready_options,
    set_up,
)
from lightning_compress.data.info import DataInfo
from lightning_compress.evaluation.settings import BenchmarkSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def run_benchmark(arguments: list[str]) -> None:
    """Parse the arguments of the command, measure, print and write the report.

    Raises:
        InputError: a model, the data or an option is invalid.
    """
    ready = ready_options(_parser, arguments)
    _measure(ready.model, ready.baseline, ready.task, ready.data, ready.measure, Path(ready.output))


def _parser() -> ArgumentParser:
    parser = model_and_data_parser(
        "benchmark",
        "Measure a saved model on the test split of some data: quality, size, memory, "
        "latency and throughput, in each runtime, precision and device.",
    )
    parser.add_argument(
        "--baseline", type=str | None, default=None, help="the dense model to compare with"
    )
    parser.add_argument("--output", type=str, default="logs/benchmark", help="folder of the report")
    parser.add_class_arguments(BenchmarkSettings, "measure")
    return parser


def _measure(
    model: str,
    baseline: str | None,
    task: str | None,
    data: Any,
    settings: BenchmarkSettings,
    output: Path,
) -> None:
    from lightning_compress.evaluation.benchmark import benchmark
    from lightning_compress.evaluation.examples import examples_of
    from lightning_compress.evaluation.report.rendering import show_report, write_report
    from lightning_compress.evaluation.report.report import Variant
    from lightning_compress.models import manifest_of
    from lightning_compress.tasks import declare_task_, task_of
    from lightning_compress.types import Batch

    measured = load_saved(model, task)
    declare_task_(measured, DataInfo.of(data).tasks)  # before the baseline's has to be the same
    own: Variant = "compressed" if baseline is not None or manifest_of(measured) else "dense"
    models: dict[Variant, PreTrainedModel] = {own: measured}
    if baseline is not None:
        models = {"dense": load_saved(baseline, task_of(measured).name), **models}
    batches: list[Batch] = []
    if settings.needs_calibration:
        batches = calibration_batches_of(data, measured, settings.batch_size)
    set_up(data, measured, "test")
    report = benchmark(
        models,
        examples_of(data.test_dataloader()),
        settings,
        run_name=Path(model).name,
        task_name=data.task_name,
        calibration_batches=batches,
        on_update=lambda report: write_report(report, output),
        progress=True,
    )
    show_report(report, output)
