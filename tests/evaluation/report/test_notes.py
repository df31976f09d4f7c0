"""Why values are missing, and why a precision is no faster than fp32."""

import json
from typing import Any

import pytest

from lightning_compress.evaluation.latency import Throughput
from lightning_compress.evaluation.report.notes import notes_of
from lightning_compress.evaluation.report.rendering import as_json, markdown, rich_table
from lightning_compress.evaluation.report.report import Report, Row, Variant
from tests.evaluation.report.example_rows import make_report, make_row


def texts_of(report: Report, row: Row) -> list[str]:
    return [str(note) for note in notes_of(report, row)]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"throughput": None}, "the measurement ended before this row was complete"),
        ({"throughput": None, "failure": "it died"}, "it died"),
        ({"measured": {"size_bytes": 44_000_000}}, "peak memory: cpu keeps no count"),
        ({"metrics": {"accuracy": 0.9, "f1": None}}, "f1: not finite on this split"),
        ({"device": "mps"}, "retention, speedup: there is no dense eager fp32 row on mps"),
    ],
)
def test_a_missing_value_has_its_reason(changes: dict[str, Any], reason: str) -> None:
    full = make_report(make_row("dense"), make_row("compressed", **changes))
    dense, other = as_json(full)["rows"]
    assert dense["note"] is None
    assert other["note"] == reason


def test_what_the_reference_lacks_is_the_reason_in_other_rows() -> None:
    dense = make_row(
        "dense", metrics={"accuracy": None, "f1": None}, throughput=None, failure="it died"
    )
    full = make_report(dense, make_row("compressed"))
    assert texts_of(full, full.rows[1]) == [
        "retention: the dense eager fp32 row's metric is unknown or zero",
        "speedup: the dense eager fp32 row was not timed",
    ]


def timed(model: Variant, precision: str, rate: float | None, **changes: Any) -> Row:
    """A row with so many samples/s; None: it was not timed."""
    throughput = None if rate is None else Throughput(32, 2, rate, 0.02)
    return make_row(model, precision=precision, throughput=throughput, **changes)


CAVEAT = "this CPU is old; buy another"


@pytest.mark.parametrize(
    ("precision", "rate", "caveat", "expected"),
    [
        ("int8-static", 837, CAVEAT, [f"0.93 times as fast as fp32: {CAVEAT}"]),
        ("int8-weight", 936, CAVEAT, [f"1.04 times as fast as fp32: {CAVEAT}"]),
        ("int8-static", 950, CAVEAT, []),  # the measurement contradicts the caveat
        ("int8-weight", 2000, CAVEAT, []),
        ("bf16", 450, CAVEAT, [f"0.50 times as fast as fp32: {CAVEAT}"]),
        ("bf16", 450, None, []),
        ("fp32", 450, None, []),
    ],
)
def test_a_caveat_is_shown_with_the_measured_figure_unless_it_is_wrong(
    precision: str, rate: float, caveat: str | None, expected: list[str]
) -> None:
    fp32 = timed("compressed", "fp32", 900.0)
    row = fp32 if precision == "fp32" else timed("compressed", precision, rate, caveat=caveat)
    full = make_report(timed("dense", "fp32", 5.0), fp32, row)
    assert texts_of(full, row) == expected


def test_int8_products_that_save_no_time_get_a_remedy_where_no_reason_is_known() -> None:
    for rate, slow in ((600.0, True), (1200.0, False)):
        row = timed("dense", "int8-dynamic", rate)
        found = texts_of(make_report(timed("dense", "fp32", 900.0), row), row)
        assert len(found) == slow
        for note in found:
            assert note.startswith("0.67 times as fast as fp32: fewer heads, neurons or layers")


def test_without_fp32_in_the_same_runtime_the_reference_is_compared_with() -> None:
    reference = timed("dense", "fp32", 900.0)
    row = timed("compressed", "int8-dynamic", 450.0, runtime="compile", caveat=CAVEAT)
    full = make_report(reference, row)
    assert texts_of(full, row) == [f"0.50 times as fast as dense eager fp32: {CAVEAT}"]
    lost = timed("compressed", "fp32", None, runtime="compile")
    assert texts_of(make_report(reference, lost, row), row) == texts_of(full, row)
    elsewhere = timed("compressed", "fp32", 90.0, runtime="compile", device="cuda:0")
    assert texts_of(make_report(reference, elsewhere, row), row) == texts_of(full, row)


@pytest.mark.parametrize("reference", [None, 900.0])
def test_without_a_measurement_the_caveat_stands_alone(reference: float | None) -> None:
    row = timed("dense", "int8-dynamic", None, caveat=CAVEAT, failure="cut short")
    full = make_report(timed("dense", "fp32", reference), row)
    assert texts_of(full, row) == ["cut short", CAVEAT]


def test_rows_that_share_a_reason_share_a_footnote() -> None:
    full = make_report(
        timed("dense", "fp32", 900.0),
        timed("compressed", "fp32", 1800.0),
        timed("dense", "int8-dynamic", 450.0, caveat=CAVEAT),
        timed("compressed", "int8-dynamic", 1350.0, caveat=CAVEAT),
    )
    shared = (
        f"{CAVEAT} (dense eager cpu int8-dynamic: 0.50 times as fast as fp32; "
        "compressed eager cpu int8-dynamic: 0.75 times as fast as fp32)"
    )
    assert f"## Notes\n\n- {shared}\n\n" in markdown(full)
    assert str(rich_table(full).caption).splitlines()[-1] == shared
    notes = [row["note"] for row in json.loads(json.dumps(as_json(full)))["rows"]]
    assert notes == [
        None, None, f"0.50 times as fast as fp32: {CAVEAT}",
        f"0.75 times as fast as fp32: {CAVEAT}",
    ]  # fmt: skip
