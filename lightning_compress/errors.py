"""Exceptions of this package, and short texts of those of others."""

from collections.abc import Iterable


class InputError(ValueError):
    """An option, a file or a combination of them is wrong.

    The message names the option or the file and the remedy. The command line prints it without a
    traceback.
    """


class NonFiniteLossError(RuntimeError):
    """The loss is NaN or infinite; the weights are still those before the step."""


def require_choice(option: str, value: object, choices: Iterable[object]) -> None:
    """Refuse a value that is not one of the choices of an option.

    Args:
        option: name of the option, for the message.
        value: what was given.
        choices: what may be given.

    Raises:
        InputError: it is none of them.
    """
    known = list(choices)
    if value not in known:
        names = ", ".join(str(one) for one in known)
        raise InputError(f"{option} must be one of {names}, not {value!r}")


def first_line(error: BaseException) -> str:
    """Return the first non-blank line of an exception's message, or the name of its type."""
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)
