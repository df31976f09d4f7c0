"""A progress bar on the terminal, drawn so that it does not disturb timings."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[str, int], None]
"""Called with a description and the number of steps done since the last call."""


@contextmanager
def progress_bar(steps: int, *, shown: bool, delay_s: float = 0.0) -> Iterator[Advance]:
    """Show a bar of ``steps`` steps.

    Args:
        steps: number of steps in all.
        shown: whether to show it; without a terminal there is none in any case.
        delay_s: seconds before it appears, so that short work shows none.
    """
    from rich import get_console
    from rich.progress import Progress

    console = get_console()
    # Drawn after each step and never by a thread of its own, which would disturb timings.
    bar = Progress(
        console=console,
        transient=True,
        auto_refresh=False,
        disable=not (shown and console.is_terminal),
    )
    appears = time.monotonic() + delay_s
    task = bar.add_task("", total=steps)

    def advance(what: str, steps: int) -> None:
        if not bar.live.is_started and time.monotonic() >= appears:
            bar.start()
        bar.update(task, advance=steps, description=what, refresh=bar.live.is_started)

    if not delay_s:
        bar.start()
    try:
        yield advance
    finally:
        if bar.live.is_started:
            bar.update(task, visible=False, refresh=True)
            bar.stop()
