"""Measure models row by row: quality over the split, then all rows of a device timed in turn."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from lightning_compress.evaluation.runtimes.runtime import PreparedModel
from lightning_compress.types import Batch

if TYPE_CHECKING:
    from lightning_compress.tasks import Task
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lightning_compress.evaluation.examples import Workload, spread_evenly
from lightning_compress.evaluation.latency import (
    REST,
    interleaved_times,
    latency_of,
    throughput_of,
)
from lightning_compress.evaluation.model_under_test import ModelUnderTest
from lightning_compress.evaluation.report.columns import columns_for
from lightning_compress.evaluation.report.report import Report, Row, reference_for
from lightning_compress.evaluation.runtimes.eager import TorchModel
from lightning_compress.evaluation.runtimes.runtime import Runtime, UnavailableError
from lightning_compress.evaluation.runtimes.subprocess_worker import WorkerError
from lightning_compress.evaluation.settings import BenchmarkSettings, fixed_threads
from lightning_compress.evaluation.trial import Trial
from lightning_compress.models.finite import is_finite, not_finite
from lightning_compress.progress import Advance
from lightning_compress.quantization.precisions import own_precision

if TYPE_CHECKING:
    from torchmetrics import MetricCollection
    from transformers import PreTrainedModel


def evaluate(
    prepared: PreparedModel,
    batches: Sequence[Batch],
    *,
    task: "Task",
    metrics: "MetricCollection",
    advance: Callable[[], None],
) -> dict[str, float | None]:
    """Compute the metrics of a model over all batches.

    Args:
        prepared: the model in its runtime.
        batches: the split, with ``labels``.
        task: the model's task.
        metrics: of the task, without a batch so far.
        advance: called after every batch.

    Returns:
        The value of every metric; None where it is not finite.

    Raises:
        NotFiniteError: an output is not finite.
    """
    for metric in metrics.values():
        # Only one process measures: torchmetrics must not wait for the others.
        metric.distributed_available_fn = lambda: False
    for batch in batches:
        logits = finite_outputs(prepared, batch)
        if not task.over_vocabulary:
            logits = logits.cpu()  # small; the logits of a language model stay on their device
        metrics = metrics.to(logits.device)
        labels = batch["labels"].to(logits.device)
        metrics.update(*task.predictions_and_targets(logits, labels))
        advance()
    values = {name: float(value) for name, value in metrics.compute().items()}
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


class NotFiniteError(Exception):
    """A model's outputs are not finite on a batch."""

    def __init__(self, batch: Batch) -> None:
        super().__init__("the outputs are not finite")
        self.batch = batch


def finite_outputs(prepared: PreparedModel, batch: Batch) -> Tensor:
    """The logits of a batch.

    Raises:
        NotFiniteError: one is not finite. A metric would take it for a prediction.
    """
    logits = prepared(prepared.load(batch))
    if not is_finite(logits, batch):
        raise NotFiniteError(batch)
    return logits


def plan(
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
    """A row with its prepared model."""

    row: Row
    runtime: Runtime
    model: ModelUnderTest
    prepared: PreparedModel


@dataclass(frozen=True)
class Measurement:
    """The rows of a benchmark, in the making.

    Args:
        models: the models to measure.
        runtimes: the runtimes to measure them in.
        work: the batches to run.
        settings: of the benchmark.
        report: where rows are added.
        on_update: called with the report when rows have been added or measured.
        advance: advances the progress bar.
    """

    models: Sequence[ModelUnderTest]
    runtimes: Sequence[Runtime]
    work: Workload
    settings: BenchmarkSettings
    report: Report
    on_update: Callable[[Report], None]
    advance: Advance

    def on(self, device: str, counts: Sequence[int]) -> None:
        """Add a device's rows, measure each, then time all of them in turn.

        Args:
            device: such as ``cpu``.
            counts: numbers of CPU threads to time with. The first is torch's current setting; for
                the others models are prepared again.
        """
        first, *more = counts
        with ExitStack() as opened:
            alive = self._timed(self._added(device, opened), first)
        for threads in more:
            with fixed_threads(threads), ExitStack() as opened:
                again = [self._ready(one.row, one.runtime, one.model, opened) for one in alive]
                self._timed([one for one in again if one is not None], threads)

    def _added(self, device: str, opened: ExitStack) -> list[_Ready]:
        """Add the rows and measure what needs no clock; returns those that can be timed."""
        planned, ready, before = self._planned(device), [], len(self.report.rows)
        rows = [row for row, _, _ in planned]
        reference = reference_for(rows, device)
        trial = Trial(spread_evenly(self.work.timed[self.settings.batch_size], 1)[0])
        # The reference first, wherever its place in the report is: it is the trial's baseline.
        for row, runtime, model in sorted(planned, key=lambda one: one[0] is not reference):
            self.report.rows.append(row)
            one = self._ready(row, runtime, model, opened)
            if one is not None and self._untimed(one, trial):
                ready.append(one)
            self._update()
        self.report.rows[before:] = rows
        return ready

    def _planned(self, device: str) -> list[tuple[Row, Runtime, ModelUnderTest]]:
        """A device's rows in the order of the report."""
        plans = [
            (model, plan(self.runtimes, device, self.settings, model.model))
            for model in self.models
        ]
        return [
            (model.row(runtime, device, precision), runtime, model)
            for runtime, precision in dict.fromkeys(step for _, plan in plans for step in plan)
            for model, plan in plans
            if (runtime, precision) in plan
        ]

    def _ready(
        self, row: Row, runtime: Runtime, model: ModelUnderTest, opened: ExitStack
    ) -> _Ready | None:
        """Prepare a row's model until ``opened`` is closed; on failure record the reason."""
        self.advance(f"Preparing {row.title}", 0)
        try:
            prepared = runtime.prepare(
                model.model, row.precision, row.device, self.work.warmup_batches
            )
        except UnavailableError as error:
            row.failure = str(error)
            return None
        opened.callback(prepared.close)
        return _Ready(row, runtime, model, prepared)

    def _untimed(self, ready: _Ready, trial: Trial) -> bool:
        """Measure quality and all columns with a ``measure``; False if it is too slow or died."""
        from lightning_compress.tasks.labels import metrics_of

        row, prepared, model = ready.row, ready.prepared, ready.model
        try:
            row.failure = trial.too_slow(row, prepared)
            if row.failure is not None:
                return False
            if "labels" in self.work.whole[0]:
                row.metrics = evaluate(
                    prepared,
                    self.work.whole,
                    task=model.task,
                    metrics=metrics_of(model.model),
                    advance=partial(self.advance, f"Testing {row.title}", 1),
                )
            else:
                finite_outputs(prepared, self.work.whole[0])
            for column in columns_for(self.report.metrics()):
                if column.measure is not None and column.key is not None:
                    row.measured[column.key] = column.measure(prepared, self.work)
        except WorkerError as error:
            row.failure = f"{row.runtime}: {error}"
            return False
        except NotFiniteError as error:
            watched = prepared.model if isinstance(prepared, TorchModel) else None
            row.failure = not_finite(watched, error.batch, row.precision)
            return False
        return True

    def _timed(self, ready: Sequence[_Ready], threads: int) -> Sequence[_Ready]:
        """Measure latency and throughput at each batch size; returns the rows still alive."""
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
        """Seconds of each row's calls, by title; if a process dies, the others start again."""
        left = list(ready)
        while left:
            try:
                calls = [
                    [
                        partial(
                            _called,
                            one.row,
                            one.prepared.seconds,
                            _called(one.row, one.prepared.load, batch),
                        )
                        for batch in batches
                    ]
                    for one in left
                ]
                times = interleaved_times(
                    calls, seconds=self.settings.seconds, clock=lambda call: call(), rest=REST
                )
            except _RowDiedError as death:
                death.row.failure = f"{death.row.runtime}: {death}"
                left = [one for one in left if one.row is not death.row]
            else:
                return {one.row.title: taken for one, taken in zip(left, times, strict=True)}
        return {}

    def _update(self) -> None:
        self.on_update(self.report)


class _RowDiedError(Exception):
    """The process of a row died."""

    def __init__(self, row: Row, why: WorkerError) -> None:
        super().__init__(str(why))
        self.row = row


def _called(row: Row, call: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function of a row's model; if its process dies, the error names the row."""
    try:
        return call(*arguments)
    except WorkerError as error:
        raise _RowDiedError(row, error) from error
