"""The protocol: dense and compressed, in every runtime, precision and device, measured alike."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lightning_compress.evaluation.compatibility import check_examples
from lightning_compress.evaluation.examples import Example, Workload, workload_of
from lightning_compress.evaluation.host import host_facts, versions
from lightning_compress.evaluation.latency import (
    REST,
    interleaved_times,
    latency_of,
    throughput_of,
)
from lightning_compress.evaluation.model_under_test import ModelUnderTest, model_under_test
from lightning_compress.evaluation.quality import evaluate
from lightning_compress.evaluation.report.columns import columns_for
from lightning_compress.evaluation.report.methodology import methodology
from lightning_compress.evaluation.report.report import Report, Run, TaskFacts, token_lengths
from lightning_compress.evaluation.report.row import Row, Variant
from lightning_compress.evaluation.runtimes.runtime import (
    PreparedModel,
    Runtime,
    RuntimeOptions,
    UnavailableError,
)
from lightning_compress.evaluation.runtimes.subprocess_worker import WorkerError
from lightning_compress.evaluation.runtimes.table import RUNTIMES
from lightning_compress.evaluation.settings import BenchmarkSettings, fixed_threads
from lightning_compress.models.forward import evaluating
from lightning_compress.progress import Advance, progress_bar
from lightning_compress.quantization.precisions import own_precision
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
    on_update: Callable[[Report], None] = lambda report: None,
    progress: bool = False,
) -> Report:
    """Measure models on the same examples.

    The models stay as and where they are; their training flags are restored.

    Args:
        models: one or both of ``dense`` and ``compressed``, for the same task.
        examples: the whole split, as :func:`~.examples.examples_of` takes it from a dataloader;
            without labels the quality stays unknown.
        settings: what to measure; None for the defaults.
        run_name: goes into the report.
        task_name: goes into the report.
        split: goes into the report.
        calibration_batches: batches of training examples, for precisions that need calibration.
        started: when the run started; None for now.
        on_update: called with the report so far whenever rows have been added or filled in, so
            that they can be written: what is finished survives an interruption.
        progress: show a progress bar on the terminal.

    Returns:
        The report, its rows in the order dense, compressed for each device, runtime, precision.

    Raises:
        InputError: an example does not fit a model.
    """
    for label, model in models.items():
        check_examples(label, model, examples)
    settings = settings or BenchmarkSettings()
    pad = next(iter(models.values())).config.pad_token_id
    work = workload_of(
        examples,
        batch_sizes=settings.batch_sizes,
        singles=settings.latency_examples,
        pad_token_id=0 if pad is None else pad,
    )
    devices, threads = settings.device_names(), settings.thread_counts()
    options = RuntimeOptions(calibration_batches, settings.batch_size, settings.timeout_s)
    runtimes = [RUNTIMES[name](options) for name in settings.runtime_names()]
    rows = sum(
        len(_plan(runtimes, device, settings, model))
        for device in devices
        for model in models.values()
    )
    with (
        fixed_threads(threads[0]),
        evaluating(*models.values()),
        progress_bar(rows * len(work.whole), shown=progress) as advance,
    ):
        subjects = [model_under_test(label, model, work.typical) for label, model in models.items()]
        report = Report(
            run=Run(run_name, _timestamp(started), host_facts(), versions()),
            task=_task_facts(subjects[0], task_name, split, examples),
            throughput_batch_size=settings.batch_size,
        )
        metrics = list(subjects[0].metrics)
        metrics.sort(key=lambda name: name != report.task.metric)
        report.protocol = methodology(settings, work, runtimes, metrics)
        measurement = _Measurement(subjects, runtimes, work, settings, report, on_update, advance)
        for device in devices:
            measurement.on(device, threads if device == "cpu" else threads[:1])
    return report


def _timestamp(moment: datetime | None) -> str:
    return (moment or datetime.now().astimezone()).isoformat(timespec="seconds")


def _task_facts(
    subject: ModelUnderTest, name: str, split: str, examples: Sequence[Example]
) -> TaskFacts:
    tokens = token_lengths([len(example) for example in examples])
    return TaskFacts(name, subject.task.primary_metric, split, len(examples), tokens)


def _plan(
    runtimes: Sequence[Runtime], device: str, settings: BenchmarkSettings, model: "PreTrainedModel"
) -> list[tuple[Runtime, str]]:
    """The runtimes and precisions that a model is measured in on a device."""
    own = own_precision(model)
    return [
        (runtime, precision)
        for runtime in runtimes
        if device in runtime.devices()
        for precision in (settings.precisions_on(device) if own is None else [own])
    ]


@dataclass(frozen=True)
class _Ready:
    """A row whose model is ready to run, and what made it so."""

    row: Row
    runtime: Runtime
    subject: ModelUnderTest
    prepared: PreparedModel


@dataclass(frozen=True)
class _Measurement:
    subjects: Sequence[ModelUnderTest]
    runtimes: Sequence[Runtime]
    work: Workload
    settings: BenchmarkSettings
    report: Report
    on_update: Callable[[Report], None]
    advance: Advance

    def on(self, device: str, counts: Sequence[int]) -> None:
        """Add a device's rows: one by one what needs no clock, then all are timed in turn.

        Torch computes with the first number of threads; they are timed with the others as well.
        """
        first, *more = counts
        with ExitStack() as opened:
            alive = self._timed(self._added(device, opened), first)
        for threads in more:
            with fixed_threads(threads), ExitStack() as opened:
                again = [self._ready(one.row, one.runtime, one.subject, opened) for one in alive]
                self._timed([one for one in again if one is not None], threads)

    def _added(self, device: str, opened: ExitStack) -> list[_Ready]:
        """Add the rows and fill in what needs no clock; gives what is there to be timed."""
        plans = [
            (subject, _plan(self.runtimes, device, self.settings, subject.model))
            for subject in self.subjects
        ]
        ready = []
        for runtime, precision in dict.fromkeys(step for _, plan in plans for step in plan):
            for subject in [one for one, plan in plans if (runtime, precision) in plan]:
                row = subject.row(runtime, device, precision)
                self.report.rows.append(row)
                one = self._ready(row, runtime, subject, opened)
                if one is not None and self._untimed(one):
                    ready.append(one)
                self._update()
        return ready

    def _ready(
        self, row: Row, runtime: Runtime, subject: ModelUnderTest, opened: ExitStack
    ) -> _Ready | None:
        """Make a row's model ready to run until ``opened`` is closed; else its notes say why."""
        self.advance(f"Preparing {row.title}", 0)
        try:
            prepared = runtime.prepare(
                subject.model, row.precision, row.device, self.work.warmup_batches
            )
        except UnavailableError as error:
            row.failure = str(error)
            return None
        opened.callback(prepared.close)
        return _Ready(row, runtime, subject, prepared)

    def _untimed(self, ready: _Ready) -> bool:
        """Quality, bytes on disk and in memory; whether it lives on."""
        row, prepared, subject = ready.row, ready.prepared, ready.subject
        try:
            if "labels" in self.work.whole[0]:
                row.metrics = evaluate(
                    prepared,
                    self.work.whole,
                    task=subject.task,
                    num_labels=subject.num_labels,
                    advance=partial(self.advance, f"Testing {row.title}", 1),
                )
            for column in columns_for(self.report.metrics()):
                if column.measure is not None and column.key is not None:
                    row.measured[column.key] = column.measure(prepared, self.work)
        except WorkerError as error:
            row.failure = f"{row.runtime}: {error}"
            return False
        return True

    def _timed(self, ready: Sequence[_Ready], threads: int) -> Sequence[_Ready]:
        """Latency, and throughput for each batch size; gives those that live on."""
        for size, batches in sorted(self.work.timed.items()):
            where = f"{threads} thread{'s' if threads > 1 else ''}"
            self.advance(f"Timing all rows in turn: batches of {size}, {where}", 0)
            times = self._times(ready, batches)
            ready = [one for one in ready if one.row.title in times]
            for row in (one.row for one in ready):
                rate = throughput_of(times[row.title], size, threads)
                row.rates.append(rate)
                if size == 1 and row.latency is None:
                    row.latency = latency_of(times[row.title], 1)
                if size == self.settings.batch_size and row.throughput is None:
                    row.throughput = rate
            self._update()
        return ready

    def _times(self, ready: Sequence[_Ready], batches: Sequence[Batch]) -> dict[str, Tensor]:
        """Seconds of the rows that live, by title; one that dies is left out and all begin anew."""
        left = list(ready)
        while left:
            try:
                calls = [
                    [
                        partial(
                            _alive,
                            one.row,
                            one.prepared.seconds,
                            _alive(one.row, one.prepared.load, batch),
                        )
                        for batch in batches
                    ]
                    for one in left
                ]
                times = interleaved_times(
                    calls, seconds=self.settings.seconds, clock=lambda call: call(), rest=REST
                )
            except _DiedError as death:
                death.row.failure = f"{death.row.runtime}: {death}"
                left = [one for one in left if one.row is not death.row]
            else:
                return {one.row.title: taken for one, taken in zip(left, times, strict=True)}
        return {}

    def _update(self) -> None:
        self.on_update(self.report)


class _DiedError(Exception):
    """The process of a row died."""

    def __init__(self, row: Row, why: WorkerError) -> None:
        super().__init__(str(why))
        self.row = row


def _alive(row: Row, call: Callable[..., Any], *arguments: Any) -> Any:
    """Call something of a row's; if its process dies the error says whose."""
    try:
        return call(*arguments)
    except WorkerError as error:
        raise _DiedError(row, error) from error
