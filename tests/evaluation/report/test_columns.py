"""The table of columns."""

import pytest
import torch

from lightning_compress.evaluation.examples import Workload
from lightning_compress.evaluation.report import columns
from lightning_compress.evaluation.report.columns import COLUMNS, Column
from lightning_compress.evaluation.report.methodology import methodology
from lightning_compress.evaluation.report.rendering import as_json, markdown, rich_table
from lightning_compress.evaluation.settings import BenchmarkSettings
from tests.evaluation.report.example_rows import make_report, make_row


def test_a_new_column_is_an_entry_in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        columns,
        "COLUMNS",
        [
            *COLUMNS,
            Column(
                key="energy.joules",
                value=lambda report, row: None if row.model == "dense" else 0.5 * row.macs,
                heading="energy",
                show=lambda value: f"{value:.0f} J",
                terminal="J",
                how_measured="joules for one example of {typical} tokens.",
                why_missing=lambda report, row: "the meter was off",
            ),
        ],
    )
    full = make_report(make_row("dense"), make_row("compressed", macs=84))
    dense, compressed = as_json(full)["rows"]
    assert (dense["energy"], compressed["energy"]) == ({"joules": None}, {"joules": 42})
    assert dense["note"] == "energy: the meter was off"
    quality = markdown(full).split("## ")[1].splitlines()
    assert [line.split(" | ")[-1] for line in quality if " | " in line] == [
        "energy |", "---: |", "- |", "42 J |",
    ]  # fmt: skip
    assert next(c for c in rich_table(full).columns if c.header == "J")._cells == ["-", "42 J"]
    assert columns.hyperparameter_metrics(full, full.rows[1])["joules"] == 42
    batch = {"input_ids": torch.ones(1, 7)}
    work = Workload([batch], {1: [batch], 32: [batch]}, batch)
    protocol = methodology(BenchmarkSettings(), work, [], full.metrics())
    assert "energy: joules for one example of 7 tokens." in protocol


def test_no_column_is_described_twice_or_lacks_a_description() -> None:
    shown = [column for column in COLUMNS if column.heading is not None]
    assert len({column.heading for column in shown}) == len(shown)
    assert all(column.how_measured for column in shown)
    keys = [column.key for column in columns.columns_for(["accuracy", "f1"]) if column.key]
    assert len(set(keys)) == len(keys)
