"""Rows and a report with made-up figures."""

from typing import Any

from lightning_compress.evaluation.host import Host
from lightning_compress.evaluation.latency import Latency, Throughput
from lightning_compress.evaluation.report.report import Report, Row, Run, TaskFacts, Variant


def make_row(model: Variant, runtime: str = "eager", **changes: Any) -> Row:
    values: dict[str, Any] = {
        "techniques": [], "runtime": runtime, "device": "cpu", "precision": "fp32",
        "metrics": {"accuracy": 0.8, "f1": 0.7}, "parameters": 11_000_000,
        "nonzero_parameters": 9_000_000, "macs": 80_000_000,
        "measured": {"size_bytes": 44_000_000, "peak_memory_bytes": 60_000_000},
        "latency": Latency(1, 3.0, 4.0, 5.0), "throughput": Throughput(32, 2, 900.0, 0.02),
        "rates": [Throughput(32, 2, 900.0, 0.02)],
        **changes,
    }  # fmt: skip
    return Row(model=model, **values)


def make_report(*rows: Row, metric: str = "accuracy") -> Report:
    return Report(
        run=Run(
            "mine/version_3", "2026-01-02T03:04:05+00:00", Host("CPU", 2, 8, ["GPU"], "fbgemm"), {}
        ),
        task=TaskFacts("sst2", metric, "test", 400, {"p50": 20, "p95": 40, "max": 60}),
        throughput_batch_size=32,
        protocol=["measured so"],
        rows=list(rows),
    )
