"""One row of a report: a model in one runtime, device and precision."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

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
