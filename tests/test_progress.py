"""The bar is drawn on a terminal, after its delay, and nowhere else."""

import io
from collections.abc import Iterator

import pytest
import rich

from lightning_compress.progress import progress_bar


@pytest.fixture
def terminal() -> Iterator[io.StringIO]:
    written = io.StringIO()
    rich.reconfigure(file=written, force_terminal=True, width=80)
    yield written
    rich.reconfigure()


def test_a_bar_tells_what_is_done_and_disappears(terminal: io.StringIO) -> None:
    with progress_bar(4, shown=True) as advance:
        advance("reading", 1)
        assert "reading" in terminal.getvalue()
        assert "25%" in terminal.getvalue()


@pytest.mark.parametrize("options", [{"shown": False}, {"shown": True, "delay_s": 60.0}])
def test_it_is_not_drawn_unasked_or_before_its_delay(
    terminal: io.StringIO, options: dict[str, float]
) -> None:
    with progress_bar(2, **options) as advance:  # type: ignore[arg-type]  # a bool or a float each
        advance("reading", 2)
    assert terminal.getvalue() == ""


def test_it_appears_after_its_delay(terminal: io.StringIO) -> None:
    with progress_bar(2, shown=True, delay_s=1e-9) as advance:
        advance("reading", 1)
        assert "reading" in terminal.getvalue()
