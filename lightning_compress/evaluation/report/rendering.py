"""The report for people: Markdown, and a table for the terminal. Figures are rounded."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_compress.evaluation.latency import Throughput
from lightning_compress.evaluation.report.report import Report
from lightning_compress.evaluation.report.row import Fastest, Row, fastest

if TYPE_CHECKING:
    from rich.table import Table


_UNKNOWN = "-"


_UNSTEADY = 0.5
"""A spread of rates beyond which a machine is taken to be busy with something else."""


_LEFT_OUT = ("on", "MACs", "nonzero")


_KEY = ("model", "runtime", "device", "precision")


def markdown(report: Report) -> str:
    """The whole report as Markdown."""
    run, task = report.run, report.task
    host = run.host
    machine = f"{host.cpu}{_on(host.threads)}, {_bytes(host.memory_bytes)}"
    used = ", ".join(f"{name} {version}" for name, version in run.versions.items())
    facts = [
        f"Task: {task.name}, {task.split} split, {task.examples:,} examples of "
        f"{task.tokens['p50']} tokens in the median, {task.tokens['p95']} at the 95th percentile, "
        f"{task.tokens['max']} at most.",
        f"Metric: {task.metric}.",
        f"Machine: {'; '.join([machine, *host.accelerators])}.",
        f"Versions: {used}.",
        f"Started: {run.started}.",
    ]
    sections = [
        f"# {run.name}",
        "\n".join(f"- {fact}" for fact in facts),
        "## Quality and size",
        _markdown_table(_quality(report)),
        "## Speed and memory",
        _markdown_table(_speed(report)),
        "## Samples/s by batch size",
        _markdown_table(_rates(report)),
    ]
    winners = [f"- {_won(one)}" for one in fastest(report.rows)]
    if winners:
        sections += ["## Fastest", "\n".join(winners)]
    notes = [f"- {note}" for note in _unsteady(report)]
    notes += [f"- {note} ({'; '.join(rows)})" for note, rows in _notes(report).items()]
    if notes:
        sections += ["## Notes", "\n".join(notes)]
    sections += ["## How it was measured", "\n".join(f"- {line}" for line in report.protocol)]
    return "\n\n".join(sections) + "\n"


def show_report(report: Report, folder: Path) -> None:
    """Show the main figures on the terminal, and the folder where the rest has been written."""
    from rich import get_console
    from rich.console import Console

    # The console that Lightning's progress bar draws on, so that the two do not mix.
    console = get_console()
    if not console.is_terminal:
        console = Console(width=110)  # a log file has no width; the table needs some
    console.print(rich_table(report))
    console.print(f"Report: {folder / 'report.md'}", markup=False, highlight=False, soft_wrap=True)


def rich_table(report: Report) -> "Table":
    """The report's main figures as a table for the terminal, narrow enough for 80 columns.

    What is the same in all rows is left out.
    """
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    rows, task = report.rows, report.task
    device = "" if len({row.device for row in rows}) > 1 else f" on {rows[0].device}"
    table = Table(
        title=f"{task.name}: {task.examples:,} examples of the {task.split} split{device}",
        caption=escape("\n".join([*_unsteady(report), *_main_winners(report), *_notes(report)])),
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
        pad_edge=False,
    )
    columns: dict[str, list[str]] = {
        "model": [row.model for row in rows],
        "runs in": [f"{row.runtime} {row.precision}" for row in rows],
        "on": [row.device for row in rows],
        task.metric: [_score(report, row, digits=3) for row in rows],
        "MACs": [_count(row.macs) for row in rows],
        "nonzero": [_count(row.nonzero_parameters) for row in rows],
        "disk MB": [_megabytes(row.size_bytes) for row in rows],
        "p50 ms": [_latency(row)[0] for row in rows],
        "per s": [_rate(row.throughput) for row in rows],
        "speed": [_times(row.speedup) for row in rows],
    }
    told = {
        head: cells
        for head, cells in columns.items()
        if head not in _LEFT_OUT or len(set(cells)) > 1
    }
    for head in told:
        left = head in ("model", "runs in", "on")
        table.add_column(head, justify="left" if left else "right", no_wrap=left)
    for cells in zip(*told.values(), strict=True):
        table.add_row(*cells, style="bold" if cells[0] == "compressed" else None)
    return table


def _notes(report: Report) -> dict[str, list[str]]:
    """Each note once, with the rows that it is about."""
    notes: dict[str, list[str]] = {}
    for row in report.rows:
        for note in report.notes(row):
            notes.setdefault(note, []).append(row.title)
    return notes


def _quality(report: Report) -> list[list[str]]:
    """The table of quality and size, head first."""
    metric = report.task.metric
    others = [name for row in report.rows[:1] for name in row.metrics if name != metric]
    head = [metric, "retention", *others, "parameters", "non-zero", "MACs", "on disk"]
    return [
        [*_KEY, *head],
        *(
            [
                *_key(row),
                _score(report, row),
                _percent(row.retention),
                *(_number(row.metrics.get(name)) for name in others),
                _count(row.parameters),
                _count(row.nonzero_parameters),
                _count(row.macs),
                _bytes(row.size_bytes),
            ]
            for row in report.rows
        ),
    ]


def _speed(report: Report) -> list[list[str]]:
    """The table of speed and memory, head first."""
    head = ["p50 ms", "p95 ms", "p99 ms", "samples/s", "IQR", "speedup", "peak memory"]
    return [
        [*_KEY, *head],
        *(
            [
                *_key(row),
                *_latency(row),
                *_throughput(row),
                _times(row.speedup),
                _bytes(row.peak_memory_bytes),
            ]
            for row in report.rows
        ),
    ]


def _rates(report: Report) -> list[list[str]]:
    """The table of rates, head first."""
    found = dict.fromkeys((r.threads, r.batch_size) for row in report.rows for r in row.rates)
    many = len({threads for threads, _ in found}) > 1
    head = [f"{size} at a time{_on(threads) if many else ''}" for threads, size in found]
    body = [[_rate(row.rate(*one)) for one in found] for row in report.rows]
    keys = [_key(row) for row in report.rows]
    return [[*_KEY, *head], *([*key, *rates] for key, rates in zip(keys, body, strict=True))]


def _won(one: Fastest) -> str:
    """Which row is the fastest, in words."""
    row, rate = one.row, one.rate
    words = (
        f"{row.device}, {rate.batch_size} at a time{_on(rate.threads)}: {row.model} {row.runtime} "
        f"{row.precision}, {_rate(rate)}/s"
    )
    if one.speedup is not None:
        words += f", {_times(one.speedup)} dense eager fp32"
    if one.next is not None:
        next_one = f"{one.next.model} {one.next.runtime} {one.next.precision}"
        words += f", {_times(one.ahead)} the best of the other runtimes ({next_one})"
    return words


def _main_winners(report: Report) -> list[str]:
    """One example at a time and as many as there may be, with the first number of threads."""
    sizes = (1, report.throughput_batch_size)
    threads = report.run.host.threads
    return [
        f"Fastest on {_won(one)}"
        for one in fastest(report.rows)
        if one.rate.batch_size in sizes and one.rate.threads == threads
    ]


def _unsteady(report: Report) -> list[str]:
    """A warning where the clock tells of something else that runs."""
    rows = [row for row in report.rows if any(rate.iqr > _UNSTEADY for rate in row.rates)]
    if not rows:
        return []
    return [
        f"Do not trust the speeds: those of {len(rows)} of {len(report.rows)} rows vary by more "
        f"than {_UNSTEADY:.0%} from round to round. Stop what else the machine does, or give it "
        "longer (seconds)."
    ]


def _on(threads: int) -> str:
    return f", {threads} thread{'s' if threads > 1 else ''}"


def _markdown_table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    rule = ["---"] * len(_KEY) + ["---:"] * (len(head) - len(_KEY))
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *body))


def _key(row: Row) -> tuple[str, str, str, str]:
    return row.model, row.runtime, row.device, row.precision


def _score(report: Report, row: Row, digits: int = 4) -> str:
    value, error = row.metrics.get(report.task.metric), report.standard_error(row)
    return _number(value, digits) + ("" if error is None else f" ± {error:.{digits}f}")


def _rate(throughput: Throughput | None) -> str:
    """The rate in as many digits as its spread leaves any sense."""
    if throughput is None:
        return _UNKNOWN
    rate = throughput.samples_per_second
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}"


def _number(value: float | None, digits: int = 4) -> str:
    if value is None:
        return _UNKNOWN
    return f"{value:.{digits}f}" if abs(value) < 10 else f"{value:.2f}"


def _percent(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{100 * value:.1f} %"


def _times(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{value:.2f}x"


def _latency(row: Row) -> tuple[str, str, str]:
    if row.latency is None:
        return _UNKNOWN, _UNKNOWN, _UNKNOWN
    p50, p95, p99 = (f"{v:.3g}" for v in (row.latency.p50, row.latency.p95, row.latency.p99))
    return p50, p95, p99


def _throughput(row: Row) -> tuple[str, str]:
    """The rate and its spread."""
    if row.throughput is None:
        return _UNKNOWN, _UNKNOWN
    return f"{row.throughput.samples_per_second:,.1f}", _percent(row.throughput.iqr)


def _count(value: int) -> str:
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:.1f}{unit}"
    return str(value)


def _megabytes(value: int | None) -> str:
    return _UNKNOWN if value is None else f"{value / 1e6:,.1f}"


def _bytes(value: int | None) -> str:
    if value is None:
        return _UNKNOWN
    return f"{value / 1e9:.1f} GB" if value >= 1e9 else f"{_megabytes(value)} MB"
