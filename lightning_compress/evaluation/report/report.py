"""The data of a report: a row for a model in one runtime, device and precision; comparisons."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from lightning_compress.evaluation.host import Host
from lightning_compress.evaluation.latency import Latency, Throughput

Variant = Literal["dense", "compressed"]


MASKS_ONLY = "masks only: shapes are unchanged, so nothing gets faster"


@dataclass
class Row:
    """The measurements of one model in one runtime, device and precision; None is unknown.

    Attributes:
        model: which of the compared models.
        techniques: what was done to it.
        runtime: the runtime's name.
        device: such as ``cpu``.
        precision: such as ``fp32``.
        metrics: each metric of the task over the whole split.
        parameters: number of parameters.
        nonzero_parameters: number of parameters that are not exactly zero.
        macs: multiply-accumulate operations for one example of median length.
        measured: values of the columns that measure a prepared model, by key.
        latency: of single examples.
        throughput: the rate that speedup is computed from, one of ``rates``.
        rates: for all batch sizes and numbers of threads.
        notes: remarks to show.
        caveat: why the precision may not be faster than fp32; shown unless it is.
        failure: why the row could not be measured, or not completely.
    """

    model: Variant
    techniques: list[str]
    runtime: str
    device: str
    precision: str
    metrics: dict[str, float | None]
    parameters: int
    nonzero_parameters: int
    macs: int
    measured: dict[str, Any] = field(default_factory=dict)
    latency: Latency | None = None
    throughput: Throughput | None = None
    rates: list[Throughput] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    caveat: str | None = None
    failure: str | None = None

    @property
    def title(self) -> str:
        """The row's identity."""
        return f"{self.model} {self.runtime} {self.device} {self.precision}"

    def rate(self, threads: int, batch_size: int) -> Throughput | None:
        """The rate at a batch size, with a number of threads."""
        key = (threads, batch_size)
        return next((r for r in self.rates if (r.threads, r.batch_size) == key), None)


def reference_for(rows: Sequence[Row], device: str) -> Row | None:
    """The row that those of a device are compared with: dense, eager, fp32."""
    key = ("dense", "eager", "fp32", device)
    return next((r for r in rows if (r.model, r.runtime, r.precision, r.device) == key), None)


@dataclass(frozen=True)
class Run:
    """The run that was measured, when it started (ISO 8601) and on what machine."""

    name: str
    started: str
    host: Host
    versions: dict[str, str]


@dataclass(frozen=True)
class TaskFacts:
    """What quality was measured on.

    Attributes:
        name: of the task, such as ``sst2``.
        metric: the primary metric.
        split: such as ``test``.
        examples: their number.
        tokens: median (``p50``), 95th percentile (``p95``) and ``max`` of the examples' lengths.
    """

    name: str
    metric: str
    split: str
    examples: int
    tokens: dict[str, int]


@dataclass
class Report:
    """All rows of a run.

    Attributes:
        run: the run.
        task: what quality was measured on.
        throughput_batch_size: the batch size that speedup is computed at.
        protocol: how the figures were measured, one item for each.
        notes: remarks on the whole run.
        rows: in the order dense, compressed for each device, runtime and precision.
    """

    run: Run
    task: TaskFacts
    throughput_batch_size: int
    protocol: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)

    def reference(self, row: Row) -> Row | None:
        """The dense eager fp32 row on a row's device."""
        return reference_for(self.rows, row.device)

    def retention(self, row: Row) -> float | None:
        """A row's primary metric divided by the reference's."""
        reference, metric = self.reference(row), self.task.metric
        if reference is None:
            return None
        return _ratio(row.metrics.get(metric), reference.metrics.get(metric))

    def speedup(self, row: Row) -> float | None:
        """A row's examples per second divided by the reference's."""
        reference = self.reference(row)
        if reference is None or row.throughput is None or reference.throughput is None:
            return None
        return _ratio(row.throughput.samples_per_second, reference.throughput.samples_per_second)

    def standard_error(self, row: Row) -> float | None:
        """Standard error of a row's accuracy, since the test split is a sample; else None."""
        accuracy = row.metrics.get("accuracy")
        if self.task.metric != "accuracy" or accuracy is None:
            return None
        return math.sqrt(accuracy * (1 - accuracy) / self.task.examples)

    def metrics(self) -> list[str]:
        """The names of the metrics, the primary one first."""
        metric = self.task.metric
        return [metric, *(name for row in self.rows[:1] for name in row.metrics if name != metric)]


def _ratio(value: float | None, reference: float | None) -> float | None:
    return None if value is None or not reference else value / reference


@dataclass(frozen=True)
class Fastest:
    """The fastest row of a device, at one batch size and number of threads.

    Attributes:
        row: the row.
        rate: its rate.
        speedup: over the dense eager fp32 row at the same batch size and number of threads.
        next: the fastest row in another runtime.
        ahead: how many times faster than that.
    """

    row: Row
    rate: Throughput
    speedup: float | None
    next: Row | None
    ahead: float | None


def fastest(rows: Sequence[Row]) -> list[Fastest]:
    """The fastest rows: by device, then by number of threads and batch size as measured."""
    places = dict.fromkeys(
        (row.device, rate.threads, rate.batch_size) for row in rows for rate in row.rates
    )
    return [_fastest(rows, *place) for place in places]


def _fastest(rows: Sequence[Row], device: str, threads: int, batch_size: int) -> Fastest:
    on_device = [row for row in rows if row.device == device]
    rates = [(r, rate) for r in on_device if (rate := r.rate(threads, batch_size)) is not None]
    ranked = sorted(rates, key=lambda one: -one[1].samples_per_second)
    row, rate = ranked[0]
    others = [one for one in ranked if one[0].runtime != row.runtime]
    reference = reference_for(rows, device)
    base = None if reference is None else reference.rate(threads, batch_size)
    return Fastest(
        row,
        rate,
        None if base is None else rate.samples_per_second / base.samples_per_second,
        others[0][0] if others else None,
        rate.samples_per_second / others[0][1].samples_per_second if others else None,
    )


def token_lengths(lengths: Sequence[int]) -> dict[str, int]:
    """Median, 95th percentile and maximum of the examples' lengths; each is one that occurs."""
    ordered = sorted(lengths)
    last = len(ordered) - 1
    return {"p50": ordered[last // 2], "p95": ordered[math.ceil(0.95 * last)], "max": ordered[last]}
