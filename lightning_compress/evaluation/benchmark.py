"""The protocol: dense and compressed, in every runtime, precision and device, measured alike."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor

from lightning_compress.evaluation.examples import Batch, Example
from lightning_compress.evaluation.fitting import check_examples
from lightning_compress.evaluation.forward import evaluating
from lightning_compress.evaluation.host import host_facts, versions
from lightning_compress.evaluation.latency import interleaved_times, latency_of, throughput_of
from lightning_compress.evaluation.legend import legend
from lightning_compress.evaluation.metrics import primary_metric
from lightning_compress.evaluation.progress import Advance, progress_bar
from lightning_compress.evaluation.quality import evaluate
from lightning_compress.evaluation.report import (
    Label,
    Report,
    Row,
    Run,
    TaskFacts,
    token_lengths,
)
from lightning_compress.evaluation.runtimes import (
    Prepared,
    Runtime,
    UnavailableError,
    runtimes_named,
)
from lightning_compress.evaluation.settings import Settings, fixed_threads
from lightning_compress.evaluation.subject import Subject, subject_of
from lightning_compress.evaluation.workload import Workload, workload_of
from lightning_compress.quantization.precisions import own_precision

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def benchmark(
    models: "Mapping[Label, PreTrainedModel]",
    examples: Sequence[Example],
    settings: Settings | None = None,
    *,
    run_name: str,
    task_name: str,
    split: str = "test",
    calibration: Sequence[Batch] = (),
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
        calibration: batches of training examples, for precisions that need some.
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
    settings = settings or Settings()
    pad = next(iter(models.values())).config.pad_token_id
    work = workload_of(
        examples,
        batch_size=settings.batch_size,
        singles=settings.latency_examples,
        pad_token_id=0 if pad is None else pad,
    )
    devices = settings.devices_here()
    runtimes = runtimes_named(settings.runtimes, calibration)
    rows = sum(
        len(_plan(runtimes, device, settings, model))
        for device in devices
        for model in models.values()
    )
    with (
        fixed_threads(settings.threads),
        evaluating(*models.values()),
        progress_bar(rows * len(work.whole), shown=progress) as advance,
    ):
        subjects = [subject_of(label, model, work.typical) for label, model in models.items()]
        report = Report(
            run=Run(run_name, _timestamp(started), host_facts(), versions()),
            task=_task_facts(subjects[0], task_name, split, examples),
            throughput_batch_size=settings.batch_size,
            protocol=legend(settings, work),
        )
        measurement = _Measurement(subjects, runtimes, work, settings, report, on_update, advance)
        for device in devices:
            measurement.on(device)
    return report


def _timestamp(moment: datetime | None) -> str:
    return (moment or datetime.now().astimezone()).isoformat(timespec="seconds")


def _task_facts(subject: Subject, name: str, split: str, examples: Sequence[Example]) -> TaskFacts:
    metric, _ = primary_metric(subject.task, subject.problem_type)
    tokens = token_lengths([len(example) for example in examples])
    return TaskFacts(name, metric, split, len(examples), tokens)


def _plan(
    runtimes: Sequence[Runtime], device: str, settings: Settings, model: "PreTrainedModel"
) -> list[tuple[Runtime, str]]:
    """The runtimes and precisions that a model is measured in on a device."""
    own = own_precision(model)
    return [
        (runtime, precision)
        for runtime in runtimes
        if device in runtime.devices()
        for precision in (settings.precisions_on(device) if own is None else [own])
        if precision in runtime.precisions()
    ]


@dataclass(frozen=True)
class _Measurement:
    subjects: Sequence[Subject]
    runtimes: Sequence[Runtime]
    work: Workload
    settings: Settings
    report: Report
    on_update: Callable[[Report], None]
    advance: Advance

    def on(self, device: str) -> None:
        """Add a device's rows: one by one what needs no clock, then all are timed in turn."""
        ready: list[tuple[Row, Prepared]] = []
        plans = [
            (subject, _plan(self.runtimes, device, self.settings, subject.model))
            for subject in self.subjects
        ]
        for runtime, precision in dict.fromkeys(step for _, plan in plans for step in plan):
            for subject in [one for one, plan in plans if (runtime, precision) in plan]:
                row = subject.row(runtime.name, device, precision)
                self.advance(f"Preparing {row.title}", 0)
                try:
                    prepared = runtime.prepare(subject.model, precision, device, self.work.trials)
                except UnavailableError as error:
                    row.notes.append(str(error))
                else:
                    self._untimed(row, prepared, subject)
                    ready.append((row, prepared))
                self.report.rows.append(row)
                self._update()
        if ready:
            self._timed(ready)
            self._update()

    def _untimed(self, row: Row, prepared: Prepared, subject: Subject) -> None:
        """Quality, bytes on disk and in memory."""
        if "labels" in self.work.whole[0]:
            row.metrics = evaluate(
                prepared,
                self.work.whole,
                task=subject.task,
                problem_type=subject.problem_type,
                num_labels=subject.num_labels,
                advance=partial(self.advance, f"Testing {row.title}", 1),
            )
        row.size_bytes = prepared.size_bytes()
        row.peak_memory_bytes = prepared.peak_memory_bytes(prepared.load(self.work.longest))

    def _timed(self, ready: Sequence[tuple[Row, Prepared]]) -> None:
        """Latency and throughput."""
        candidates = [prepared for _, prepared in ready]
        self.advance("Timing all rows in turn", 0)
        single = self._times(candidates, self.work.single)
        full = self._times(candidates, self.work.full)
        for (row, _), alone, together in zip(ready, single, full, strict=True):
            row.latency = latency_of(alone, 1)
            row.throughput = throughput_of(together, self.settings.batch_size)

    def _times(self, candidates: Sequence[Prepared], batches: Sequence[Batch]) -> list[Tensor]:
        calls = [
            [partial(prepared, prepared.load(batch)) for batch in batches]
            for prepared in candidates
        ]
        return interleaved_times(calls, seconds=self.settings.seconds)

    def _update(self) -> None:
        self.report.relate()
        self.on_update(self.report)
