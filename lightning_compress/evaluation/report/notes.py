"""Notes on a row: why figures are missing, and why its precision is no faster than fp32."""

from dataclasses import dataclass

from lightning_compress.evaluation.report.columns import columns_for
from lightning_compress.evaluation.report.report import Report, Row
from lightning_compress.quantization.precisions import PRECISIONS, SHORTER_PRODUCTS

FASTER = 1.05
"""Ratio of samples/s from which a precision counts as faster than fp32; below it is noise."""


@dataclass(frozen=True)
class Note:
    """A remark on a row.

    Args:
        text: the same for all rows that it is about.
        figure: the row's own figure in words, if the note is about one.
    """

    text: str
    figure: str | None = None

    def __str__(self) -> str:
        return self.text if self.figure is None else f"{self.figure}: {self.text}"


def notes_of(report: Report, row: Row) -> list[Note]:
    """A row's remarks, why values are missing, and why it is no faster than fp32."""
    texts = [*row.notes, *missing_value_notes(report, row)]
    return [*map(Note, texts), *_speed_notes(report, row)]


def missing_value_notes(report: Report, row: Row) -> list[str]:
    """Why values of a row are missing; a failure explains all of them."""
    if row.failure is not None:
        return [row.failure]
    if row.throughput is None:
        return ["the measurement ended before this row was complete"]
    reasons: dict[str, list[str]] = {}
    for column in columns_for(report.metrics()):
        if column.of(report, row) is None:
            reason = column.why_missing(report, row)
            if reason is not None:
                reasons.setdefault(reason, []).append(column.heading or column.key or "")
    return [f"{', '.join(names)}: {reason}" for reason, names in reasons.items()]


def _speed_notes(report: Report, row: Row) -> list[Note]:
    """Why a precision is no faster than fp32: by measurement, or as expected where there is none.

    A caveat that the measurement contradicts is not shown.
    """
    compared = _times_fp32(report, row)
    if compared is None:
        return [] if row.caveat is None else [Note(row.caveat)]
    ratio, base = compared
    int8_products = PRECISIONS[row.precision].activations != "float"
    why = row.caveat or (SHORTER_PRODUCTS if int8_products else None)
    if why is None or ratio >= FASTER:
        return []
    return [Note(why, f"{ratio:.2f} times as fast as {base}")]


def _times_fp32(report: Report, row: Row) -> tuple[float, str] | None:
    """A row's samples/s over those of the same model and runtime in fp32, else of the reference.

    Returns:
        The ratio and what it is relative to; None if either was not timed.
    """
    same = (row.model, row.runtime, row.device, "fp32")
    for other, name in (
        *((r, "fp32") for r in report.rows if (r.model, r.runtime, r.device, r.precision) == same),
        (report.reference(row), "dense eager fp32"),
    ):
        if row.throughput is not None and other is not None and other.throughput is not None:
            return row.throughput.samples_per_second / other.throughput.samples_per_second, name
    return None
