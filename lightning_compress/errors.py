"""The exception for input that the user can correct, and short texts of other exceptions."""


class InputError(ValueError):
    """An option, a file or a combination of them is wrong.

    The message names the option or the file and the remedy. The command line prints it without a
    traceback.
    """


def first_line(error: BaseException) -> str:
    """Return the first non-blank line of an exception's message, or the name of its type."""
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)
