"""Which row runs most examples a second, at each batch size and number of threads."""

from collections.abc import Sequence
from dataclasses import dataclass

from lightning_compress.evaluation.latency import Throughput
from lightning_compress.evaluation.row import Row, reference_for


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
