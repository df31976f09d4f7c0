"""The report: its data, ``report.json`` in schema 1, and writing it safely."""

import json
import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lightning_compress.evaluation.host import Host
from lightning_compress.evaluation.report.row import (
    Fastest,
    Row,
    fastest,
    missing_value_notes,
    reference_for,
)

SCHEMA = 1


@dataclass(frozen=True)
class Run:
    """Which run was measured, when it started (ISO 8601) and where."""

    name: str
    started: str
    host: Host
    versions: dict[str, str]


@dataclass(frozen=True)
class TaskFacts:
    """What was asked of the models; ``tokens`` are the lengths of the examples."""

    name: str
    metric: str
    split: str
    examples: int
    tokens: dict[str, int]


@dataclass
class Report:
    """All rows of a run. ``protocol`` says in words how they were measured."""

    run: Run
    task: TaskFacts
    throughput_batch_size: int
    protocol: list[str]
    rows: list[Row] = field(default_factory=list)

    def relate(self) -> None:
        """Compare every row with the dense eager fp32 row on its device."""
        for row in self.rows:
            reference = reference_for(self.rows, row.device)
            if reference is None:
                continue
            metric = self.task.metric
            row.retention = _ratio(row.metrics.get(metric), reference.metrics.get(metric))
            if row.throughput is not None and reference.throughput is not None:
                row.speedup = _ratio(
                    row.throughput.samples_per_second, reference.throughput.samples_per_second
                )

    def notes(self, row: Row) -> list[str]:
        """All that is to be said about a row."""
        return [*row.notes, *missing_value_notes(row, reference_for(self.rows, row.device))]

    def standard_error(self, row: Row) -> float | None:
        """Standard error of the accuracy: the test split is itself a sample of its source."""
        accuracy = row.metrics.get("accuracy")
        if self.task.metric != "accuracy" or accuracy is None:
            return None
        return math.sqrt(accuracy * (1 - accuracy) / self.task.examples)

    def as_json(self) -> dict[str, Any]:
        """The report as plain data, in schema 1."""
        return {
            "schema": SCHEMA,
            "run": asdict(self.run),
            "task": asdict(self.task),
            "rows": [self._row_as_json(row) for row in self.rows],
            "fastest": [_fastest_as_json(one) for one in fastest(self.rows)],
        }

    def _row_as_json(self, row: Row) -> dict[str, Any]:
        latency, throughput = row.latency, row.throughput
        return {
            "model": row.model,
            "techniques": row.techniques,
            "runtime": row.runtime,
            "device": row.device,
            "precision": row.precision,
            "metrics": row.metrics,
            "retention": row.retention,
            "parameters": row.parameters,
            "nonzero_parameters": row.nonzero_parameters,
            "macs": row.macs,
            "size_bytes": row.size_bytes,
            "latency_ms": {
                "batch_size": 1,
                "p50": latency and latency.p50,
                "p95": latency and latency.p95,
                "p99": latency and latency.p99,
            },
            "throughput": {
                "batch_size": self.throughput_batch_size,
                "samples_per_second": throughput and throughput.samples_per_second,
            },
            "rates": [asdict(rate) for rate in row.rates],
            "peak_memory_bytes": row.peak_memory_bytes,
            "speedup": row.speedup,
            "note": "; ".join(self.notes(row)) or None,
        }


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


def _ratio(value: float | None, reference: float | None) -> float | None:
    return None if value is None or not reference else value / reference


def write_report(report: Report, folder: Path) -> None:
    """Write ``report.json`` and ``report.md``, each whole or not at all.

    The pictures that the run has left in the folder are shown in ``report.md``.
    """
    from lightning_compress.evaluation.report.rendering import markdown

    text = json.dumps(report.as_json(), indent=2, allow_nan=False)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "report.json", text + "\n")
    shown = [f"\n![{one.stem}]({one.name})\n" for one in sorted(folder.glob("*.png"))]
    write_whole(folder / "report.md", "".join([markdown(report), *shown]))


def write_whole(path: Path, text: str) -> None:
    """Write a file so that at any time either the old text or the new one is there."""
    handle, unfinished = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(unfinished).chmod(0o644)
        Path(unfinished).replace(path)
    except BaseException:
        Path(unfinished).unlink(missing_ok=True)
        raise


def token_lengths(lengths: Sequence[int]) -> dict[str, int]:
    """Median, 95th percentile and maximum of the examples' lengths; each is one that occurs."""
    ordered = sorted(lengths)
    last = len(ordered) - 1
    return {"p50": ordered[last // 2], "p95": ordered[math.ceil(0.95 * last)], "max": ordered[last]}
