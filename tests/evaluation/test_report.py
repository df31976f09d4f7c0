"""The report's data, its files and its looks."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lightning_compress.evaluation.host import Host
from lightning_compress.evaluation.latency import Latency, Throughput
from lightning_compress.evaluation.report.rendering import markdown, rich_table
from lightning_compress.evaluation.report.report import (
    Report,
    Run,
    TaskFacts,
    token_lengths,
    write_report,
)
from lightning_compress.evaluation.report.row import MASKS_ONLY, Row, Variant, fastest


def row(model: Variant, runtime: str = "eager", **changes: Any) -> Row:
    values: dict[str, Any] = {
        "techniques": [], "runtime": runtime, "device": "cpu", "precision": "fp32",
        "metrics": {"accuracy": 0.8, "f1": 0.7}, "parameters": 11_000_000,
        "nonzero_parameters": 9_000_000, "macs": 80_000_000, "size_bytes": 44_000_000,
        "latency": Latency(1, 3.0, 4.0, 5.0), "throughput": Throughput(32, 2, 900.0, 0.02),
        "rates": [Throughput(32, 2, 900.0, 0.02)],
        "peak_memory_bytes": 60_000_000, **changes,
    }  # fmt: skip
    return Row(model=model, **values)


def report(*rows: Row, metric: str = "accuracy") -> Report:
    return Report(
        run=Run("mine/version_3", "2026-01-02T03:04:05+00:00", Host("CPU", 2, 8, ["GPU"]), {}),
        task=TaskFacts("sst2", metric, "test", 400, {"p50": 20, "p95": 40, "max": 60}),
        throughput_batch_size=32,
        protocol=["measured so"],
        rows=list(rows),
    )


def test_retention_and_speedup_are_over_the_dense_eager_fp32_row_of_the_device() -> None:
    dense, other = row("dense"), row("dense", device="cuda:0")
    other.throughput = Throughput(32, 2, 9000.0, 0.0)
    quick = row("compressed", "compile", metrics={"accuracy": 0.6})
    quick.throughput = Throughput(32, 2, 1800.0, 0.0)
    there = row("compressed", device="cuda:0")
    full = report(dense, quick, other, there)
    full.relate()
    assert (dense.retention, dense.speedup) == (1, 1)
    assert quick.retention == pytest.approx(0.75)
    assert quick.speedup == pytest.approx(2.0)
    assert there.speedup == pytest.approx(0.1)


def test_nothing_is_related_to_what_was_not_measured() -> None:
    alone = row("compressed")
    report(alone).relate()
    assert (alone.retention, alone.speedup) == (None, None)
    lost = row("dense", metrics={"accuracy": None}, throughput=None)
    found = row("compressed")
    report(lost, found).relate()
    assert (found.retention, found.speedup) == (None, None)


def test_standard_error_is_that_of_a_share() -> None:
    full = report(row("dense"))
    assert full.standard_error(full.rows[0]) == pytest.approx(math.sqrt(0.8 * 0.2 / 400))
    assert report(metric="perplexity").standard_error(row("dense")) is None


def test_json_keeps_to_schema_1_with_null_for_the_unmeasured() -> None:
    failed = row(
        "compressed", "compile", metrics={"accuracy": None}, size_bytes=None, latency=None,
        throughput=None, rates=[], peak_memory_bytes=None,
        failure="torch.compile failed: no compiler",
    )  # fmt: skip
    full = report(row("dense"), failed)
    full.relate()
    data = full.as_json()
    assert list(data) == ["schema", "run", "task", "rows", "fastest"]
    assert data["schema"] == 1
    assert data["run"] == {
        "name": "mine/version_3",
        "started": "2026-01-02T03:04:05+00:00",
        "host": {"cpu": "CPU", "threads": 2, "memory_bytes": 8, "accelerators": ["GPU"]},
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


def test_markdown_and_table_show_every_row_its_error_and_its_notes() -> None:
    full = report(
        row("dense"),
        row("compressed", notes=[MASKS_ONLY]),
        row("compressed", "compile", metrics={"accuracy": None, "f1": None}, latency=None,
            throughput=None, rates=[], notes=[MASKS_ONLY],
            failure="torch.compile failed: no compiler"),
    )  # fmt: skip
    full.relate()
    text = markdown(full)
    assert text.count("| dense | eager | cpu | fp32 | 0.8000 ± 0.0200 | 100.0 % |") == 1
    assert "| compressed | compile | cpu | fp32 | - | - | - |" in text
    assert "400 examples" in text
    assert f"- {MASKS_ONLY} (compressed eager cpu fp32; compressed compile cpu fp32)" in text
    assert "- measured so" in text
    table = rich_table(full)
    assert table.row_count == 3
    won = "cpu, 32 at a time, 2 threads: dense eager fp32, 900/s, 1.00x dense eager fp32"
    assert f"- {won}\n" in text
    assert table.caption == f"Fastest on {won}\n{MASKS_ONLY}\ntorch.compile failed: no compiler"


def test_the_table_fits_a_terminal_of_80_columns() -> None:
    dense = row(
        "dense", nonzero_parameters=110_000_000, throughput=Throughput(32, 2, 24131.8, 0.02)
    )
    rows = [dense, row("compressed", "compile", throughput=Throughput(32, 2, 32.84, 0.02))]
    full = report(*rows)
    full.relate()
    console = Console(width=80)
    with console.capture() as printed:
        console.print(rich_table(full))
    lines = [line.split() for line in printed.get().splitlines()]
    for title, rate in (("dense", "24,132"), ("compressed", "32.8")):
        (line,) = (line for line in lines if line[:1] == [title])
        assert {"0.800", "±", "0.020", rate} < set(line)
    assert max(map(len, printed.get().splitlines())) <= 80


def test_the_fastest_row_is_found_for_each_device_batch_size_and_number_of_threads() -> None:
    def rates(one: float, many: float, alone: float) -> list[Throughput]:
        return [
            Throughput(1, 2, one, 0.0), Throughput(32, 2, many, 0.0), Throughput(32, 1, alone, 0.0)
        ]  # fmt: skip

    rows = [
        row("dense", rates=rates(10.0, 100.0, 50.0)),
        row("compressed", rates=rates(40.0, 150.0, 90.0)),
        row("compressed", "compile", rates=rates(30.0, 300.0, 45.0)),
        row("compressed", "openvino", rates=rates(20.0, 200.0, 60.0)),
        row("dense", device="cuda:0", rates=[Throughput(1, 2, 500.0, 0.0)]),
    ]
    found = [
        (one.row.title, one.rate.threads, one.rate.batch_size, one.speedup, one.ahead,
         one.next and one.next.runtime)
        for one in fastest(rows)
    ]  # fmt: skip
    assert found == [
        ("compressed eager cpu fp32", 2, 1, 4.0, 40 / 30, "compile"),
        ("compressed compile cpu fp32", 2, 32, 3.0, 1.5, "openvino"),
        ("compressed eager cpu fp32", 1, 32, 1.8, 1.5, "openvino"),
        ("dense eager cuda:0 fp32", 2, 1, 1.0, None, None),
    ]
    assert fastest([row("dense", rates=[])]) == []
    assert "1.50x the best of the other runtimes (compressed openvino fp32)" in markdown(
        report(*rows)
    )


def test_a_busy_machine_is_told_of() -> None:
    steady, shaken = row("dense"), row("compressed", rates=[Throughput(32, 2, 900.0, 0.6)])
    warning = "those of 1 of 2 rows vary by more than 50% from round to round"
    for rows, told in (([steady, shaken], True), ([steady, row("compressed")], False)):
        full = report(*rows)
        assert (warning in markdown(full)) is told
        assert (warning in str(rich_table(full).caption)) is told


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"throughput": None}, "the measuring ended before this row was through"),
        ({"throughput": None, "failure": "it died"}, "it died"),
        ({"peak_memory_bytes": None}, "peak memory: cpu keeps no count"),
        ({"metrics": {"accuracy": 0.9, "f1": None}}, "f1: not finite on this split"),
        ({"device": "mps"}, "no retention, no speedup: no dense eager fp32 row on mps"),
    ],
)
def test_no_figure_is_missing_without_a_word(changes: dict[str, Any], reason: str) -> None:
    full = report(row("dense"), row("compressed", **changes))
    full.relate()
    dense, other = full.as_json()["rows"]
    assert dense["note"] is None
    assert other["note"] == reason


def test_what_the_dense_row_lacks_is_told_of_the_others() -> None:
    dense = row("dense", metrics={"accuracy": None, "f1": None}, throughput=None, failure="it died")
    full = report(dense, row("compressed"))
    full.relate()
    assert full.notes(full.rows[1]) == [
        "no speedup: the dense eager fp32 row was not timed",
        "no retention: the dense eager fp32 row's metric is unknown or zero",
    ]


def test_files_appear_whole_and_the_old_ones_stay_when_writing_fails(tmp_path: Path) -> None:
    write_report(report(row("dense")), tmp_path / "run")
    before = (tmp_path / "run" / "report.json").read_text()
    assert json.loads(before)["rows"][0]["model"] == "dense"
    with pytest.raises(ValueError, match="Out of range float"):
        write_report(report(row("dense", metrics={"accuracy": math.nan})), tmp_path / "run")
    assert (tmp_path / "run" / "report.json").read_text() == before
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["report.json", "report.md"]


def test_pictures_of_the_run_are_shown(tmp_path: Path) -> None:
    (tmp_path / "sensitivity.png").write_bytes(b"")
    write_report(report(row("dense")), tmp_path)
    assert (tmp_path / "report.md").read_text().endswith("\n![sensitivity](sensitivity.png)\n")


def test_token_lengths_are_lengths_that_occur() -> None:
    assert token_lengths([5]) == {"p50": 5, "p95": 5, "max": 5}
    assert token_lengths(range(1, 101)) == {"p50": 50, "p95": 96, "max": 100}
