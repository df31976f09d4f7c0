"""The report's data: how rows compare."""

import math

import pytest

from lightning_compress.evaluation.latency import Throughput
from lightning_compress.evaluation.report.rendering import markdown
from lightning_compress.evaluation.report.report import fastest, token_lengths
from tests.evaluation.report.example_rows import make_report, make_row


def test_retention_and_speedup_are_over_the_dense_eager_fp32_row_of_the_device() -> None:
    dense, other = make_row("dense"), make_row("dense", device="cuda:0")
    other.throughput = Throughput(32, 2, 9000.0, 0.0)
    quick = make_row("compressed", "compile", metrics={"accuracy": 0.6})
    quick.throughput = Throughput(32, 2, 1800.0, 0.0)
    there = make_row("compressed", device="cuda:0")
    full = make_report(dense, quick, other, there)
    assert (full.retention(dense), full.speedup(dense)) == (1, 1)
    assert full.retention(quick) == pytest.approx(0.75)
    assert full.speedup(quick) == pytest.approx(2.0)
    assert full.speedup(there) == pytest.approx(0.1)


def test_without_a_measured_reference_retention_and_speedup_are_unknown() -> None:
    alone = make_row("compressed")
    assert (make_report(alone).retention(alone), make_report(alone).speedup(alone)) == (None, None)
    lost = make_row("dense", metrics={"accuracy": None}, throughput=None)
    found = make_row("compressed")
    full = make_report(lost, found)
    assert (full.retention(found), full.speedup(found)) == (None, None)


def test_standard_error_is_binomial() -> None:
    full = make_report(make_row("dense"))
    assert full.standard_error(full.rows[0]) == pytest.approx(math.sqrt(0.8 * 0.2 / 400))
    assert make_report(metric="perplexity").standard_error(make_row("dense")) is None


def test_the_fastest_row_is_found_for_each_device_batch_size_and_number_of_threads() -> None:
    def rates(one: float, many: float, alone: float) -> list[Throughput]:
        return [
            Throughput(1, 2, one, 0.0), Throughput(32, 2, many, 0.0), Throughput(32, 1, alone, 0.0)
        ]  # fmt: skip

    rows = [
        make_row("dense", rates=rates(10.0, 100.0, 50.0)),
        make_row("compressed", rates=rates(40.0, 150.0, 90.0)),
        make_row("compressed", "compile", rates=rates(30.0, 300.0, 45.0)),
        make_row("compressed", "openvino", rates=rates(20.0, 200.0, 60.0)),
        make_row("dense", device="cuda:0", rates=[Throughput(1, 2, 500.0, 0.0)]),
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
    assert fastest([make_row("dense", rates=[])]) == []
    assert "1.50x the best of the other runtimes (compressed openvino fp32)" in markdown(
        make_report(*rows)
    )


def test_token_lengths_are_lengths_that_occur() -> None:
    assert token_lengths([5]) == {"p50": 5, "p95": 5, "max": 5}
    assert token_lengths(range(1, 101)) == {"p50": 50, "p95": 96, "max": 100}
