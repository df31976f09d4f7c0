"""The columns of the report.

``report.json``, the tables of ``report.md``, the table on the terminal, TensorBoard's HParams, the
methodology and the notes on missing values are all loops over these columns. A new column is an
entry in :data:`COLUMNS`; one that measures a prepared model has its ``measure``.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from lightning_compress.evaluation.report.report import Report, Row
from lightning_compress.evaluation.report.units import (
    byte_count,
    count,
    factor,
    megabytes,
    number,
    percent,
    rate,
    short,
    tenths,
)

if TYPE_CHECKING:
    from lightning_compress.evaluation.examples import Workload
    from lightning_compress.evaluation.runtimes.runtime import PreparedModel


@dataclass(frozen=True, kw_only=True)
class Column:
    """One figure of a row.

    Args:
        key: its place in ``report.json``, a dot separating levels; None: not there.
        value: the figure of a row of a report, None if unknown. Default: what ``measure`` returned.
        measure: measures a prepared model on a workload.
        heading: in ``report.md``; None: not there.
        section: the table in ``report.md``.
        show: a known value as text, in ``report.md``.
        error: the value's standard error, shown after it.
        terminal: heading on the terminal; None: not there.
        show_terminal: as ``show``, on the terminal; default: ``show``.
        only_if_varying: leave it out on the terminal where all rows have the same text.
        how_measured: for the methodology; may name the fields of :func:`~.methodology.facts`.
        why_missing: why a row's value is None; None: explained by another column.
        hparam: log the value of the trained model to TensorBoard's HParams.
    """

    key: str | None
    value: Callable[[Report, Row], Any] | None = None
    measure: "Callable[[PreparedModel, Workload], Any] | None" = None
    heading: str | None = None
    section: Literal["Quality and size", "Speed and memory"] = "Quality and size"
    show: Callable[[Any], str] = number
    error: Callable[[Report, Row], float | None] = lambda report, row: None
    terminal: str | None = None
    show_terminal: Callable[[Any], str] | None = None
    only_if_varying: bool = False
    how_measured: str | None = None
    why_missing: Callable[[Report, Row], str | None] = lambda report, row: "not measured"
    hparam: bool = True

    def of(self, report: Report, row: Row) -> Any:
        """The figure of a row; None if unknown."""
        return self.value(report, row) if self.value else row.measured.get(self.key or "")


def _metric(name: str, *, primary: bool) -> Column:
    return Column(
        key=f"metrics.{name}",
        value=lambda report, row: row.metrics.get(name),
        heading=name,
        error=(lambda report, row: report.standard_error(row)) if primary else _no_error,
        terminal=name if primary else None,
        show_terminal=partial(number, digits=3),
        how_measured="over the whole split, in the row's own runtime and precision. ± is the "
        "standard error of an accuracy on so many examples.",
        why_missing=_why_no_metric,
    )


def _no_error(report: Report, row: Row) -> None:
    return None


def _why_no_metric(report: Report, row: Row) -> str:
    if all(value is None for value in row.metrics.values()):
        return "there are no labels"
    return "not finite on this split"


def _without_reference(row: Row) -> str:
    return f"there is no dense eager fp32 row on {row.device}"


def _why_no_retention(report: Report, row: Row) -> str | None:
    if row.metrics.get(report.task.metric) is None:
        return None
    if report.reference(row) is None:
        return _without_reference(row)
    return "the dense eager fp32 row's metric is unknown or zero"


def _why_no_speedup(report: Report, row: Row) -> str:
    if report.reference(row) is None:
        return _without_reference(row)
    return "the dense eager fp32 row was not timed"


def _percentile(name: str) -> Column:
    return Column(
        key=f"latency_ms.{name}",
        value=lambda report, row: row.latency and getattr(row.latency, name),
        heading=f"{name} ms",
        section="Speed and memory",
        show=short,
        terminal=f"{name} ms" if name == "p50" else None,
        how_measured="percentiles of the latency of one example, over {singles} real examples at "
        "their own lengths, evenly chosen from all lengths, each timed several times.",
        hparam=False,
    )


RETENTION = Column(
    key="retention",
    value=lambda report, row: report.retention(row),
    heading="retention",
    show=percent,
    how_measured="the primary metric divided by that of the dense eager fp32 row (of a perplexity, "
    "more than 100 % is worse).",
    why_missing=_why_no_retention,
)


COLUMNS: list[Column] = [
    Column(
        key="parameters",
        value=lambda report, row: row.parameters,
        heading="parameters",
        show=count,
        how_measured="tied parameters count once.",
        hparam=False,
    ),
    Column(
        key="nonzero_parameters",
        value=lambda report, row: row.nonzero_parameters,
        heading="non-zero",
        show=count,
        terminal="nonzero",
        only_if_varying=True,
        how_measured="parameters that are not exactly zero.",
    ),
    Column(
        key="macs",
        value=lambda report, row: row.macs,
        heading="MACs",
        show=count,
        terminal="MACs",
        only_if_varying=True,
        how_measured="multiply-accumulate operations for one example of median length, {typical} "
        "tokens, counted by torch in matrix products and attention. A product with a zero counts.",
    ),
    Column(
        key="size_bytes",
        measure=lambda prepared, work: prepared.size_bytes(),
        heading="on disk",
        show=byte_count,
        terminal="disk MB",
        show_terminal=megabytes,
        how_measured="weights in the row's precision, configuration, manifest and masks as "
        "`save_compressed` writes them, without the tokenizer; of exported models, the exported "
        "files.",
    ),
    Column(key="latency_ms.batch_size", value=lambda report, row: 1, hparam=False),
    *map(_percentile, ("p50", "p95", "p99")),
    Column(
        key="throughput.batch_size",
        value=lambda report, row: report.throughput_batch_size,
        hparam=False,
    ),
    Column(
        key="throughput.samples_per_second",
        value=lambda report, row: row.throughput and row.throughput.samples_per_second,
        heading="samples/s",
        section="Speed and memory",
        show=tenths,
        terminal="per s",
        show_terminal=rate,
        how_measured="batches of {size} real examples of similar length, {batches} of them evenly "
        "chosen from all lengths, padded to a multiple of 8, each in its median time; other batch "
        "sizes alike, single examples as for the latency.",
        hparam=False,
    ),
    Column(
        key=None,
        value=lambda report, row: row.throughput and row.throughput.iqr,
        heading="IQR",
        section="Speed and memory",
        show=percent,
        how_measured="interquartile range of the repetitions' rates, divided by their median.",
        hparam=False,
    ),
    Column(
        key="rates",
        value=lambda report, row: [asdict(rate) for rate in row.rates],
        hparam=False,
    ),
    Column(
        key="speedup",
        value=lambda report, row: report.speedup(row),
        heading="speedup",
        section="Speed and memory",
        show=factor,
        terminal="speed",
        how_measured="samples/s divided by those of the dense eager fp32 row on the same device.",
        why_missing=_why_no_speedup,
    ),
    Column(
        key="peak_memory_bytes",
        measure=lambda prepared, work: prepared.peak_memory_bytes(prepared.load(work.longest)),
        heading="peak memory",
        section="Speed and memory",
        show=byte_count,
        how_measured="weights plus everything that a batch of {size} examples with {longest} "
        "tokens each holds at one time, by torch's allocator; of exported models, the peak memory "
        "of their process minus its memory before they were loaded.",
        why_missing=lambda report, row: f"{row.device} keeps no count",
        hparam=False,
    ),
]


def columns_for(metrics: Sequence[str]) -> list[Column]:
    """All columns.

    Args:
        metrics: the names of the metrics, the primary one first.
    """
    primary, *others = metrics
    return [
        _metric(primary, primary=True),
        RETENTION,
        *(_metric(name, primary=False) for name in others),
        *COLUMNS,
    ]


def hyperparameter_metrics(report: Report, row: Row) -> dict[str, float]:
    """The known values of a row for TensorBoard's HParams, by the last part of their key."""
    values = {
        column.key.rsplit(".", 1)[-1]: column.of(report, row)
        for column in columns_for(report.metrics())
        if column.hparam and column.key is not None
    }
    return {name: value for name, value in values.items() if value is not None}
