"""A progress bar that does not disturb the clock."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[str, int], None]
"""Told what is being done and how many steps of it have been done since the last time."""


@contextmanager
def progress_bar(steps: int, *, shown: bool) -> Iterator[Advance]:
    """Show a bar of so many steps on the terminal, if there is one and it is wanted."""
    from rich import get_console
    from rich.progress import Progress

    console = get_console()
    # Drawn after each step and never by a thread of its own, which would disturb the timing.
    bar = Progress(
        console=console,
        transient=True,
        auto_refresh=False,
        disable=not (shown and console.is_terminal),
    )
    with bar:
        task = bar.add_task("", total=steps)

        def advance(what: str, steps: int) -> None:
            bar.update(task, advance=steps, description=what, refresh=True)

        yield advance
        bar.update(task, visible=False, refresh=True)
