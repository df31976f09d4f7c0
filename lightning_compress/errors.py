"""Exceptions of this package, and short texts of those of others."""

import math
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


def require_number(
    option: str, value: float, *, least: float = 0.0, most: float = math.inf
) -> None:
    """Refuse a number that is out of its range, or is none.

    Args:
        option: name of the option, for the message.
        value: what was given.
        least: the smallest that is allowed.
        most: the largest that is allowed; default: any but infinity.

    Raises:
        InputError: it is smaller, larger, infinite or NaN.
    """
    if not (math.isfinite(value) and least <= value <= most):
        limit = "" if math.isinf(most) else f" and at most {most:g}"
        raise InputError(f"{option} must be a number of at least {least:g}{limit}, not {value:g}")


def first_line(error: BaseException) -> str:
    """Return the first non-blank line of an exception's message, or the name of its type."""
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)
