"""The report: its data, ``report.json`` in schema 1, and writing it safely."""

import json
import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from lightning_compress.evaluation.host import Host
from lightning_compress.evaluation.latency import Latency, Throughput

SCHEMA = 1
Label = Literal["dense", "compressed"]

MASKS_ONLY = "masks only: shapes are unchanged, so nothing gets faster"


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
class Row:
    """One model in one runtime, device and precision; None is what was not measured."""

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
    peak_memory_bytes: int | None = None
    retention: float | None = None
    speedup: float | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def title(self) -> str:
        """What tells the row from others."""
        return f"{self.model} {self.runtime} {self.device} {self.precision}"

    @property
    def note(self) -> str | None:
        """All that is to be said about the row, in one line."""
        return "; ".join(self.notes) or None


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
            reference = next(
                (
                    other
                    for other in self.rows
                    if (other.model, other.runtime, other.precision, other.device)
                    == ("dense", "eager", "fp32", row.device)
                ),
                None,
            )
            if reference is None:
                continue
            metric = self.task.metric
            row.retention = _ratio(row.metrics.get(metric), reference.metrics.get(metric))
            if row.throughput is not None and reference.throughput is not None:
                row.speedup = _ratio(
                    row.throughput.samples_per_second, reference.throughput.samples_per_second
                )

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
            "peak_memory_bytes": row.peak_memory_bytes,
            "speedup": row.speedup,
            "note": row.note,
        }


def _ratio(value: float | None, reference: float | None) -> float | None:
    return None if value is None or not reference else value / reference


def write_report(report: Report, folder: Path) -> None:
    """Write ``report.json`` and ``report.md``, each whole or not at all."""
    from lightning_compress.evaluation.rendering import markdown

    text = json.dumps(report.as_json(), indent=2, allow_nan=False)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "report.json", text + "\n")
    write_whole(folder / "report.md", markdown(report))


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
