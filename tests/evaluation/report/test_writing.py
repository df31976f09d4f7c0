"""``report.json`` and ``report.md``."""

import json
import math
from pathlib import Path

import pytest

from lightning_compress.evaluation.report.rendering import as_json, write_report
from tests.evaluation.report.example_rows import make_report, make_row


def test_json_keeps_to_schema_1_with_null_for_the_unmeasured() -> None:
    failed = make_row(
        "compressed", "compile", metrics={"accuracy": None}, measured={}, latency=None,
        throughput=None, rates=[],
        failure="torch.compile failed: no compiler",
    )  # fmt: skip
    full = make_report(make_row("dense"), failed)
    data = as_json(full)
    assert list(data) == ["schema", "run", "task", "notes", "rows", "fastest"]
    assert data["schema"] == 1
    assert data["run"] == {
        "name": "mine/version_3",
        "started": "2026-01-02T03:04:05+00:00",
        "host": {
            "cpu": "CPU",
            "threads": 2,
            "memory_bytes": 8,
            "accelerators": ["GPU"],
            "int8_kernel": "fbgemm",
        },
        "versions": {},
    }
    assert data["task"] == {
        "name": "sst2", "metric": "accuracy", "split": "test", "examples": 400,
        "tokens": {"p50": 20, "p95": 40, "max": 60},
    }  # fmt: skip
    assert data["rows"][0] == {
        "model": "dense", "techniques": [], "runtime": "eager", "device": "cpu",
        "precision": "fp32", "metrics": {"accuracy": 0.8, "f1": 0.7}, "retention": 1.0,
        "parameters": 11_000_000, "nonzero_parameters": 9_000_000, "macs": 80_000_000,
        "size_bytes": 44_000_000,
        "latency_ms": {"batch_size": 1, "p50": 3.0, "p95": 4.0, "p99": 5.0},
        "throughput": {"batch_size": 32, "samples_per_second": 900.0},
        "rates": [
            {"batch_size": 32, "threads": 2, "samples_per_second": 900.0, "iqr": 0.02}
        ],
        "peak_memory_bytes": 60_000_000, "speedup": 1.0, "note": None,
    }  # fmt: skip
    assert data["rows"][1]["latency_ms"] == dict.fromkeys(("p50", "p95", "p99")) | {"batch_size": 1}
    assert data["rows"][1]["throughput"] == {"batch_size": 32, "samples_per_second": None}
    assert data["rows"][1]["note"] == "torch.compile failed: no compiler"
    for name in ("retention", "size_bytes", "peak_memory_bytes", "speedup"):
        assert data["rows"][1][name] is None


def test_files_are_written_atomically(tmp_path: Path) -> None:
    write_report(make_report(make_row("dense")), tmp_path / "run")
    before = (tmp_path / "run" / "report.json").read_text()
    assert json.loads(before)["rows"][0]["model"] == "dense"
    with pytest.raises(ValueError, match="Out of range float"):
        write_report(
            make_report(make_row("dense", metrics={"accuracy": math.nan})), tmp_path / "run"
        )
    assert (tmp_path / "run" / "report.json").read_text() == before
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["report.json", "report.md"]


def test_declared_figures_are_shown(tmp_path: Path) -> None:
    (tmp_path / "sensitivity.png").write_bytes(b"")
    write_report(make_report(make_row("dense")), tmp_path, [tmp_path / "sensitivity.png"])
    assert (tmp_path / "report.md").read_text().endswith("\n![sensitivity](sensitivity.png)\n")
