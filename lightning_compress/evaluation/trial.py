"""Time one batch of each row first, and cut short the rows that are far slower than the baseline.

Such a row would hold up the benchmark, and all other rows would be timed on fewer examples, while
one batch says already that it is slow.
"""

from lightning_compress.evaluation.report.report import Row
from lightning_compress.evaluation.report.units import short
from lightning_compress.evaluation.runtimes.runtime import PreparedModel
from lightning_compress.types import Batch

SLOWEST = 10.0
"""How many times as long as the baseline's a row's batch may take."""


MIN_EXTRA = 0.05
"""Seconds more than the baseline's that a batch may take: less is no time worth saving."""


_RUNS = 2
"""The fastest of so many runs counts, since a single one may have been interrupted."""


class Trial:
    """Compares the rows of a device with the first one that is tried, the baseline.

    Args:
        batch: the batch to time.
    """

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self._baseline: tuple[str, float] | None = None

    def too_slow(self, row: Row, prepared: PreparedModel) -> str | None:
        """Time the batch on a row's model, which has run before.

        Returns:
            Why the row is to be cut short; None if it is not, as the baseline never is.

        Raises:
            WorkerError: the model's process died.
        """
        loaded = prepared.load(self._batch)
        taken = min(prepared.seconds(loaded) for _ in range(_RUNS))
        if self._baseline is None:
            self._baseline = f"{row.model} {row.runtime} {row.precision}", taken
        name, usual = self._baseline
        if taken <= max(SLOWEST * usual, usual + MIN_EXTRA):
            return None
        return (
            f"cut short: a batch took {taken / usual:.0f} times as long as {name} "
            f"({short(taken)} s against {short(usual)} s)"
        )
