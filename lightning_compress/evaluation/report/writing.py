"""Write a report: ``report.json`` in schema 1, and ``report.md``."""

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning_compress.evaluation.report.columns import columns_for, notes_of
from lightning_compress.evaluation.report.rendering import markdown
from lightning_compress.evaluation.report.report import Fastest, Report, fastest
from lightning_compress.evaluation.report.row import Row

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
    return {**data, "note": "; ".join(notes_of(report, row)) or None}


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
