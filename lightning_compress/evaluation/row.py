"""One row of a report: one model in one runtime, device and precision."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from lightning_compress.evaluation.latency import Latency, Throughput

Label = Literal["dense", "compressed"]

MASKS_ONLY = "masks only: shapes are unchanged, so nothing gets faster"


@dataclass
class Row:
    """One model in one runtime, device and precision; None is what was not measured.

    ``throughput`` is one of the ``rates``, which are those of all batch sizes and numbers of
    threads. ``failure`` says why a row does not run, or ran no further.
    """

    model: Label
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
