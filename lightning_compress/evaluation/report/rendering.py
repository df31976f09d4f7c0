"""A report as Markdown, as a table on the terminal and as files in the folder of a run."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_compress.evaluation.report.columns import Column, columns_for
from lightning_compress.evaluation.report.notes import notes_of
from lightning_compress.evaluation.report.report import Fastest, Report, Row, fastest
from lightning_compress.evaluation.report.units import (
    UNKNOWN,
    byte_count,
    factor,
    rate_of,
    thread_count,
)

if TYPE_CHECKING:
    from rich.table import Table
import json
import os
import tempfile
from dataclasses import asdict
from typing import Any

_UNSTEADY = 0.5
"""Relative IQR of a rate above which the machine is assumed to be busy with something else."""


_KEY = ("model", "runtime", "device", "precision")


def markdown(report: Report) -> str:
    """The whole report as Markdown."""
    columns = columns_for(report.metrics())
    sections = [f"# {report.run.name}", "\n".join(f"- {fact}" for fact in _facts(report))]
    for section in dict.fromkeys(column.section for column in columns):
        shown = [one for one in columns if one.section == section and one.heading is not None]
        sections += [f"## {section}", _markdown_table(report, shown)]
    sections += ["## Samples/s by batch size", _rates_table(report)]
    winners = [f"- {_described(one)}" for one in fastest(report.rows)]
    if winners:
        sections += ["## Fastest", "\n".join(winners)]
    notes = [*report.notes, *_unsteady(report), *_notes(report, name_rows=True)]
    if notes:
        sections += ["## Notes", "\n".join(f"- {note}" for note in notes)]
    sections += ["## How it was measured", "\n".join(f"- {line}" for line in report.protocol)]
    return "\n\n".join(sections) + "\n"


def _facts(report: Report) -> list[str]:
    run, task, host = report.run, report.task, report.run.host
    machine = f"{host.cpu}, {thread_count(host.threads)}, {byte_count(host.memory_bytes)}"
    versions = ", ".join(f"{name} {version}" for name, version in run.versions.items())
    return [
        f"Task: {task.name}, {task.split} split, {task.examples:,} examples of "
        f"{task.tokens['p50']} tokens in the median, {task.tokens['p95']} at the 95th percentile, "
        f"{task.tokens['max']} at most.",
        f"Metric: {task.metric}.",
        f"Machine: {'; '.join([machine, *host.accelerators])}. "
        f"Int8 products on the CPU in PyTorch: {host.int8_kernel}.",
        f"Versions: {versions}.",
        f"Started: {run.started}.",
    ]


def show_report(report: Report, folder: Path) -> None:
    """Print the main figures to the terminal, and the path of ``report.md`` in ``folder``."""
    from rich import get_console
    from rich.console import Console

    # The console that Lightning's progress bar draws on, so that the two do not mix.
    console = get_console()
    if not console.is_terminal:
        console = Console(width=110)  # a log file has no width; the table needs one
    console.print(rich_table(report))
    console.print(f"Report: {folder / 'report.md'}", markup=False, highlight=False, soft_wrap=True)


def rich_table(report: Report) -> "Table":
    """The report's main figures as a table for the terminal, narrow enough for 80 columns."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    rows, task = report.rows, report.task
    one_device = len({row.device for row in rows}) == 1
    table = Table(
        title=f"{task.name}: {task.examples:,} examples of the {task.split} split"
        + (f" on {rows[0].device}" if one_device else ""),
        caption=escape("\n".join(_footnotes(report))),
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
        pad_edge=False,
    )
    columns = {
        "model": [row.model for row in rows],
        "runs in": [f"{row.runtime} {row.precision}" for row in rows],
        **({} if one_device else {"on": [row.device for row in rows]}),
    }
    for heading in columns:
        table.add_column(heading, justify="left", no_wrap=True)
    for column in columns_for(report.metrics()):
        if column.terminal is None:
            continue
        cells = [_terminal_cell(column, report, row) for row in rows]
        if not column.only_if_varying or len(set(cells)) > 1:
            columns[column.terminal] = cells
            table.add_column(column.terminal, justify="right")
    for texts in zip(*columns.values(), strict=True):
        table.add_row(*texts, style="bold" if texts[0] == "compressed" else None)
    return table


def _cell(column: Column, report: Report, row: Row) -> str:
    """A figure as text, in ``report.md``."""
    value, error = column.of(report, row), column.error(report, row)
    text = UNKNOWN if value is None else column.show(value)
    return text if error is None else f"{text} ± {column.show(error)}"


def _terminal_cell(column: Column, report: Report, row: Row) -> str:
    """A figure as text, on the terminal."""
    value, error = column.of(report, row), column.error(report, row)
    show = column.show_terminal or column.show
    text = UNKNOWN if value is None else show(value)
    return text if error is None else f"{text} ± {show(error)}"


def _markdown_table(report: Report, columns: Sequence[Column]) -> str:
    cells = [[_cell(column, report, row) for row in report.rows] for column in columns]
    headings = [column.heading or "" for column in columns]
    return _table(report, headings, cells)


def _rates_table(report: Report) -> str:
    """Rates by batch size and, where there are several, number of threads."""
    measured = dict.fromkeys((r.threads, r.batch_size) for row in report.rows for r in row.rates)
    several = len({threads for threads, _ in measured}) > 1
    headings = [
        f"{size} at a time" + (f", {thread_count(threads)}" if several else "")
        for threads, size in measured
    ]
    cells = [[rate_of(row.rate(*one)) for row in report.rows] for one in measured]
    return _table(report, headings, cells)


def _table(report: Report, headings: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """A Markdown table with the rows' identity first; ``cells`` are given column by column."""
    keys = [(row.model, row.runtime, row.device, row.precision) for row in report.rows]
    lines = [[*_KEY, *headings], ["---"] * len(_KEY) + ["---:"] * len(headings)]
    lines += [[*key, *(column[i] for column in cells)] for i, key in enumerate(keys)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _footnotes(report: Report) -> list[str]:
    """What is below the table on the terminal, line by line."""
    return [
        *report.notes,
        *_unsteady(report),
        *_main_winners(report),
        *_notes(report, name_rows=False),
    ]


def _notes(report: Report, *, name_rows: bool) -> list[str]:
    """Each note once, with the rows that have a figure of their own or, ``name_rows``, all rows."""
    rows: dict[str, list[str]] = {}
    for row in report.rows:
        for note in notes_of(report, row):
            named = rows.setdefault(note.text, [])
            if note.figure is not None:
                named.append(f"{row.title}: {note.figure}")
            elif name_rows:
                named.append(row.title)
    return [f"{text} ({'; '.join(named)})" if named else text for text, named in rows.items()]


def _described(one: Fastest) -> str:
    """A fastest row in words."""
    row, rate = one.row, one.rate
    words = (
        f"{row.device}, {rate.batch_size} at a time, {thread_count(rate.threads)}: {row.model} "
        f"{row.runtime} {row.precision}, {rate_of(rate)}/s"
    )
    if one.speedup is not None:
        words += f", {factor(one.speedup)} dense eager fp32"
    if one.next is not None and one.ahead is not None:
        next_one = f"{one.next.model} {one.next.runtime} {one.next.precision}"
        words += f", {factor(one.ahead)} the best of the other runtimes ({next_one})"
    return words


def _main_winners(report: Report) -> list[str]:
    """The fastest rows at batch size 1 and the largest, with the first number of threads."""
    sizes = (1, report.throughput_batch_size)
    threads = report.run.host.threads
    return [
        f"Fastest on {_described(one)}"
        for one in fastest(report.rows)
        if one.rate.batch_size in sizes and one.rate.threads == threads
    ]


def _unsteady(report: Report) -> list[str]:
    """A warning where the rates vary so much that the machine must be busy."""
    rows = [row for row in report.rows if any(rate.iqr > _UNSTEADY for rate in row.rates)]
    if not rows:
        return []
    return [
        f"Do not trust the speeds: those of {len(rows)} of {len(report.rows)} rows vary by more "
        f"than {_UNSTEADY:.0%} between repetitions. Stop other programs on this machine, or "
        "measure longer (seconds)."
    ]


SCHEMA = 1


def write_report(report: Report, folder: Path, figures: Sequence[Path] = ()) -> None:
    """Write ``report.json`` and ``report.md``, each atomically.

    Args:
        report: the report.
        folder: the folder to write to; made if missing.
        figures: images in that folder, to show in ``report.md``.
    """
    text = json.dumps(as_json(report), indent=2, allow_nan=False)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "report.json", text + "\n")
    shown = [f"\n![{figure.stem}]({figure.name})\n" for figure in figures]
    write_whole(folder / "report.md", "".join([markdown(report), *shown]))


def as_json(report: Report) -> dict[str, Any]:
    """The report as plain data, in schema 1."""
    return {
        "schema": SCHEMA,
        "run": asdict(report.run),
        "task": asdict(report.task),
        "notes": report.notes,
        "rows": [_row_as_json(report, row) for row in report.rows],
        "fastest": [_fastest_as_json(one) for one in fastest(report.rows)],
    }


def _row_as_json(report: Report, row: Row) -> dict[str, Any]:
    data: dict[str, Any] = {
        "model": row.model,
        "techniques": row.techniques,
        "runtime": row.runtime,
        "device": row.device,
        "precision": row.precision,
    }
    for column in columns_for(report.metrics()):
        if column.key is None:
            continue
        *levels, name = column.key.split(".")
        place = data
        for level in levels:
            place = place.setdefault(level, {})
        place[name] = column.of(report, row)
    return {**data, "note": "; ".join(map(str, notes_of(report, row))) or None}


def _fastest_as_json(one: Fastest) -> dict[str, Any]:
    return {
        "device": one.row.device,
        "threads": one.rate.threads,
        "batch_size": one.rate.batch_size,
        "model": one.row.model,
        "runtime": one.row.runtime,
        "precision": one.row.precision,
        "samples_per_second": one.rate.samples_per_second,
        "speedup": one.speedup,
    }


def write_whole(path: Path, text: str) -> None:
    """Write a file atomically: at any time it holds either the old text or the new."""
    handle, unfinished = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(unfinished).chmod(0o644)
        Path(unfinished).replace(path)
    except BaseException:
        Path(unfinished).unlink(missing_ok=True)
        raise
