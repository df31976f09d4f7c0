"""Rows out of JSON: one object a line, and columns with values of one kind."""

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from reprlib import repr as shortened
from typing import IO, TYPE_CHECKING, Any

from lightning_compress.errors import InputError, first_line

if TYPE_CHECKING:
    import pyarrow as pa


def parsed(text: str, where: str) -> Any:
    """The value that a JSON text stands for.

    Args:
        text: the text.
        where: what error messages call it.

    Raises:
        InputError: it is no JSON, nested too deep, or has a number of thousands of digits.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{where} is not JSON: {error}") from error
    except RecursionError as error:
        raise InputError(
            f"{where} is nested too deep to be read, in hundreds of brackets: mend it"
        ) from error
    except ValueError as error:  # Python's own limit
        raise InputError(f"{where} has a number of thousands of digits: mend it") from error


def json_rows(lines: IO[str], file: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file.

    Raises:
        InputError: a line is no object.
    """
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        row = parsed(line, f"{file}, line {number}")
        if not isinstance(row, dict):
            raise InputError(
                f'{file}, line {number} is not an object such as {{"text": ..., "label": ...}}'
                ": JSON files hold one object a line"
            )
        yield row


def json_table(
    rows: Iterable[dict[str, Any]], columns: Sequence[str], limit: int | None, file: Path
) -> "pa.Table":
    """Some columns of the first rows.

    Args:
        rows: the objects.
        columns: their fields; a row without one of them has null.
        limit: how many rows; None: all.
        file: where they come from.

    Raises:
        InputError: the values of a column are of several kinds, or of none that can be stored.
    """
    import pyarrow as pa

    values: dict[str, list[Any]] = {column: [] for column in columns}
    for row in islice(rows, limit):
        for column in columns:
            values[column].append(row.get(column))
    return pa.table({column: _array(mine, column, file) for column, mine in values.items()})


def _array(values: list[Any], column: str, file: Path) -> "pa.Array":
    import pyarrow as pa

    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError, UnicodeError) as error:
        good, bad = 0, len(values)  # so many of the first are read, so many are not
        while bad - good > 1:
            half = (good + bad) // 2
            good, bad = (half, bad) if _fits(values[:half]) else (good, half)
        raise InputError(
            f"{file}: row {bad} has {shortened(values[good])} in column {column}, and "
            f"{_fault(values[good], values[:good], error)}: mend it or take the row out"
        ) from error


def _fits(values: list[Any]) -> bool:
    import pyarrow as pa

    try:
        pa.array(values)
    except (pa.ArrowException, OverflowError, UnicodeError):
        return False
    return True


def _fault(value: Any, before: list[Any], error: Exception) -> str:
    """What is wrong with a value that does not fit to those before it."""
    import pyarrow as pa

    if isinstance(error, UnicodeError):
        return "a half of a surrogate pair is no character"
    if _fits([value]):
        return f"the rows before it hold {pa.array(before).type}"
    if isinstance(error, OverflowError) or "too large" in str(error):
        return "numbers have at most 64 bits"
    return f"it holds values of several kinds ({first_line(error)})"
