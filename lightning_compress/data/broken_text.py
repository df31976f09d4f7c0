"""Faults of text files that parsers pass over: encodings, zero bytes, open quotation marks."""

import codecs
import csv
import gzip
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from lightning_compress.data.label_column import is_list
from lightning_compress.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

_CHUNK = 2**24  # bytes


def open_bytes(file: Path) -> IO[bytes]:
    """The bytes of a file, unpacked if it is a ``.gz`` file."""
    return gzip.open(file) if file.suffix == ".gz" else file.open("rb")  # type: ignore[return-value]


def require_utf8(file: Path) -> None:
    """Refuse a file that says itself that it is UTF-16.

    Raises:
        InputError: it begins with the byte order mark of UTF-16.
    """
    with open_bytes(file) as stream:
        if stream.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            raise InputError(f"{file} is in UTF-16: save it in UTF-8")


def require_closed_quotes(file: Path) -> None:
    """Refuse a csv file whose last cell swallows all rows behind an open quotation mark.

    Quotation marks within an unquoted cell are text, so an odd number of them alone is no fault.

    Raises:
        InputError: a quoted cell does not end.
    """
    with open_bytes(file) as stream:
        count = sum(chunk.count(b'"') for chunk in iter(lambda: stream.read(_CHUNK), b""))
    if count % 2 == 0:
        return
    limit = csv.field_size_limit(sys.maxsize)
    try:
        with open_bytes(file) as stream, suppress(UnicodeDecodeError):
            lines = codecs.getreader("utf-8-sig")(stream)
            reader, ended = csv.reader(lines, strict=True), 0
            while True:
                try:
                    next(reader)
                    ended = reader.line_num
                except StopIteration:
                    return
                except csv.Error as error:
                    if "unexpected end of data" not in str(error):
                        return  # read as lenient parsers do
                    raise InputError(
                        f"{file}: a quotation mark is opened behind line {ended} and never closed: "
                        "close it, or write quotation marks within a text twice"
                    ) from error
    finally:
        csv.field_size_limit(limit)


def refuse_zero_bytes(table: "pa.Table", file: Path) -> None:
    """Refuse texts with zero bytes, which are no texts but binary data or another encoding.

    Args:
        table: the rows.
        file: where they come from.

    Raises:
        InputError: a string has one.
    """
    for name in table.column_names:
        values = table.column(name)
        if _has_zero_byte(values):
            row = next(row for row in range(len(values)) if _has_zero_byte(values.slice(row, 1)))
            raise InputError(
                f"{file}: row {row + 1} has a zero byte (NUL) in column {name}: the file is "
                "binary, damaged or not in UTF-8; mend it or take the row out"
            )


def _has_zero_byte(values: Any) -> bool:
    import pyarrow as pa
    from pyarrow import compute

    kind = values.type
    if pa.types.is_dictionary(kind):
        return _has_zero_byte(values.cast(kind.value_type))
    if is_list(kind):
        return _has_zero_byte(compute.list_flatten(values))
    if pa.types.is_struct(kind):
        return any(
            _has_zero_byte(compute.struct_field(values, field)) for field in range(kind.num_fields)
        )
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        return False
    return bool(compute.any(compute.match_substring(values, "\0")).as_py())
