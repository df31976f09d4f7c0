"""One row of a report: one model in one runtime, device and precision.

Why a figure of a row is missing: none is without a word.

Which row runs most examples a second, at each batch size and number of threads.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from lightning_compress.evaluation.latency import Latency, Throughput

Variant = Literal["dense", "compressed"]


MASKS_ONLY = "masks only: shapes are unchanged, so nothing gets faster"


@dataclass
class Row:
    """One model in one runtime, device and precision; None is what was not measured.

    ``throughput`` is one of the ``rates``, which are those of all batch sizes and numbers of
    threads. ``failure`` says why a row does not run, or ran no further.
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
    size_bytes: int | None = None
    latency: Latency | None = None
    throughput: Throughput | None = None
    rates: list[Throughput] = field(default_factory=list)
    peak_memory_bytes: int | None = None
    retention: float | None = None
    speedup: float | None = None
    notes: list[str] = field(default_factory=list)
    failure: str | None = None

    @property
    def title(self) -> str:
        """What tells the row from others."""
        return f"{self.model} {self.runtime} {self.device} {self.precision}"

    def rate(self, threads: int, batch_size: int) -> Throughput | None:
        """The rate in batches of that size, with so many threads."""
        wanted = (threads, batch_size)
        return next((r for r in self.rates if (r.threads, r.batch_size) == wanted), None)


def reference_for(rows: Sequence[Row], device: str) -> Row | None:
    """The row that those of a device are compared with: dense, eager, fp32."""
    wanted = ("dense", "eager", "fp32", device)
    return next((r for r in rows if (r.model, r.runtime, r.precision, r.device) == wanted), None)


def missing_value_notes(row: Row, reference: Row | None) -> list[str]:
    """What is to be said about a row's missing figures; the first reason explains the others.

    Args:
        row: of a report.
        reference: the row that it is compared with, if there is one.
    """
    if row.failure is not None:
        return [row.failure]
    if row.throughput is None:
        return ["the measuring ended before this row was through"]
    missing = [name for name, value in row.metrics.items() if value is None]
    found = []
    if missing == list(row.metrics):
        found.append("no quality: there are no labels, or the outputs are not finite")
    elif missing:
        found.append(f"{', '.join(missing)}: not finite on this split")
    if row.peak_memory_bytes is None:
        found.append(f"peak memory: {row.device} keeps no count")
    if reference is None:
        found.append(f"no retention, no speedup: no dense eager fp32 row on {row.device}")
        return found
    if row.speedup is None:
        found.append("no speedup: the dense eager fp32 row was not timed")
    if row.retention is None and not missing:
        found.append("no retention: the dense eager fp32 row's metric is unknown or zero")
    return found


@dataclass(frozen=True)
class Fastest:
    """The fastest row on a device.

    ``speedup`` is over the dense eager fp32 row at the same batch size and number of threads;
    ``next`` is the fastest row in another runtime, ``ahead`` how many times faster than that it is.
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
    here = [row for row in rows if row.device == device]
    rates = [(row, rate) for row in here if (rate := row.rate(threads, batch_size)) is not None]
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
