"""A progress bar that does not disturb the clock."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[str], None]
"""Called after each step with what is being done."""


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
        task = bar.add_task("Measuring", total=steps)

        def advance(what: str) -> None:
            bar.update(task, advance=1, description=f"Measuring {what}", refresh=True)

        yield advance
