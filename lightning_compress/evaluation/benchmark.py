"""Benchmark models: dense and compressed, in each runtime, precision and device, alike."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING

from lightning_compress.evaluation.examples import Example, Workload, workload_of
from lightning_compress.evaluation.host import host_facts, versions
from lightning_compress.evaluation.measurement import Measurement, plan
from lightning_compress.evaluation.model_under_test import (
    ModelUnderTest,
    check_examples,
    check_labels,
    model_under_test,
)
from lightning_compress.evaluation.report.methodology import methodology
from lightning_compress.evaluation.report.report import (
    Report,
    Run,
    TaskFacts,
    Variant,
    token_lengths,
)
from lightning_compress.evaluation.runtimes.runtime import Runtime, RuntimeOptions
from lightning_compress.evaluation.runtimes.table import RUNTIMES
from lightning_compress.evaluation.settings import BenchmarkSettings, fixed_threads
from lightning_compress.models.forward import evaluating, image_tokens
from lightning_compress.progress import Advance, progress_bar
from lightning_compress.types import Batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def benchmark(
    models: "Mapping[Variant, PreTrainedModel]",
    examples: Sequence[Example],
    settings: BenchmarkSettings | None = None,
    *,
    run_name: str,
    task_name: str,
    split: str = "test",
    calibration_batches: Sequence[Batch] = (),
    started: datetime | None = None,
    notes: Sequence[str] = (),
    on_update: Callable[[Report], None] = lambda report: None,
    progress: bool = False,
) -> Report:
    """Measure models on the same examples.

    The models are not changed or moved; their training flags are restored.

    Args:
        models: one or both of ``dense`` and ``compressed``, for the same task.
        examples: the whole split, as :func:`~.examples.examples_of` takes it from a dataloader;
            without labels the quality is unknown.
        settings: what to measure; None for the defaults.
        run_name: the run's name in the report.
        task_name: the task's name in the report.
        split: the split's name in the report.
        calibration_batches: batches of training examples, for precisions that need calibration.
        started: when the run started; None for now.
        notes: remarks on the run, which head the notes of the report.
        on_update: called with the unfinished report whenever rows have been added or measured, so
            that finished rows can be written before an interruption.
        progress: show a progress bar on the terminal.

    Returns:
        The report, its rows in the order dense, compressed for each device, runtime, precision.

    Raises:
        InputError: an example does not fit a model, or the models have other labels.
    """
    for variant, model in models.items():
        check_examples(variant, model, examples)
    check_labels(models)
    settings = settings or BenchmarkSettings()
    threads = settings.thread_counts()
    with (
        fixed_threads(threads[0]),
        _prepared(models, examples, settings, calibration_batches, progress) as prepared,
    ):
        measured, work, runtimes, advance = prepared
        run = Run(run_name, _timestamp(started), host_facts(), versions())
        task = _task_facts(measured[0], task_name, split, examples, work)
        protocol = methodology(settings, work, runtimes, measured[0].metrics)
        report = Report(run, task, settings.batch_size, protocol, list(notes))
        measurement = Measurement(measured, runtimes, work, settings, report, on_update, advance)
        try:
            for device in settings.device_names():
                measurement.on(device, threads if device == "cpu" else threads[:1])
        except KeyboardInterrupt:
            report.rows = [row for row in report.rows if row.measured or row.failure is not None]
            report.notes.insert(0, _INTERRUPTED)
            on_update(report)
            raise
    return report


_INTERRUPTED = "The measurement was interrupted: what is missing was not measured."


@contextmanager
def _prepared(
    models: "Mapping[Variant, PreTrainedModel]",
    examples: Sequence[Example],
    settings: BenchmarkSettings,
    calibration_batches: Sequence[Batch],
    progress: bool,
) -> Iterator[tuple[list[ModelUnderTest], Workload, list[Runtime], Advance]]:
    """The models in eval mode, batches and runtimes, and a progress bar."""
    first = next(iter(models.values()))
    pad = getattr(first.config, "pad_token_id", None)
    work = workload_of(
        examples,
        batch_sizes=settings.batch_sizes,
        singles=settings.latency_examples,
        pad_token_id=0 if pad is None else pad,
        image_tokens=0 if "input_ids" in examples[0].tokens else image_tokens(first),
    )
    options = RuntimeOptions(calibration_batches, settings.batch_size, settings.timeout_s)
    runtimes = [RUNTIMES[name](options) for name in settings.runtime_names()]
    rows = [
        row
        for device in settings.device_names()
        for model in models.values()
        for row in plan(runtimes, device, settings, model)
    ]
    with (
        evaluating(*models.values()),
        progress_bar(len(rows) * len(work.whole), shown=progress) as advance,
    ):
        measured = [model_under_test(name, model, work.typical) for name, model in models.items()]
        yield measured, work, runtimes, advance


def _timestamp(moment: datetime | None) -> str:
    return (moment or datetime.now().astimezone()).isoformat(timespec="seconds")


def _task_facts(
    model: ModelUnderTest, name: str, split: str, examples: Sequence[Example], work: Workload
) -> TaskFacts:
    tokens = token_lengths([work.image_tokens or len(example) for example in examples])
    return TaskFacts(name, model.task.primary_metric, split, len(examples), tokens)
