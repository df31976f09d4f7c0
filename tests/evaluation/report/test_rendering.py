"""The report as Markdown and on the terminal."""

from rich.console import Console

from lightning_compress.evaluation.latency import Throughput
from lightning_compress.evaluation.report.rendering import markdown, rich_table
from lightning_compress.evaluation.report.report import MASKS_ONLY
from tests.evaluation.report.example_rows import make_report, make_row


def test_markdown_and_table_show_every_row_its_error_and_its_notes() -> None:
    full = make_report(
        make_row("dense"),
        make_row("compressed", notes=[MASKS_ONLY]),
        make_row("compressed", "compile", metrics={"accuracy": None, "f1": None}, latency=None,
            throughput=None, rates=[], notes=[MASKS_ONLY],
            failure="torch.compile failed: no compiler"),
    )  # fmt: skip
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
    dense = make_row(
        "dense", nonzero_parameters=110_000_000, throughput=Throughput(32, 2, 24131.8, 0.02)
    )
    rows = [dense, make_row("compressed", "compile", throughput=Throughput(32, 2, 32.84, 0.02))]
    full = make_report(*rows)
    console = Console(width=80)
    with console.capture() as printed:
        console.print(rich_table(full))
    lines = [line.split() for line in printed.get().splitlines()]
    for title, rate in (("dense", "24,132"), ("compressed", "32.8")):
        (line,) = (line for line in lines if line[:1] == [title])
        assert {"0.800", "±", "0.020", rate} < set(line)
    assert max(map(len, printed.get().splitlines())) <= 80


def test_unsteady_rates_give_a_warning() -> None:
    steady, shaken = (
        make_row("dense"),
        make_row("compressed", rates=[Throughput(32, 2, 900.0, 0.6)]),
    )
    warning = "those of 1 of 2 rows vary by more than 50% between repetitions"
    for rows, told in (([steady, shaken], True), ([steady, make_row("compressed")], False)):
        full = make_report(*rows)
        assert (warning in markdown(full)) is told
        assert (warning in str(rich_table(full).caption)) is told
