"""Rows out of local files: csv, tsv, JSON lines, CoNLL (all also as .gz), parquet, plain text."""

import gzip
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal, get_args

from lightning_compress.data.broken_text import (
    refuse_zero_bytes,
    require_closed_quotes,
    require_utf8,
)
from lightning_compress.data.conll import conll_columns, conll_sentences
from lightning_compress.data.json_rows import json_rows, json_table
from lightning_compress.data.squad import COLUMNS, is_squad, squad_rows
from lightning_compress.errors import InputError, first_line

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow import csv as pa_csv

FileFormat = Literal["csv", "tsv", "jsonl", "parquet", "text", "conll", "squad"]

_EXTENSIONS: dict[str, FileFormat] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".txt": "text",
    ".tokens": "text",
    ".raw": "text",
    ".conll": "conll",
    ".iob": "conll",
    ".iob2": "conll",
    ".bio": "conll",
}
TEXT_COLUMN = "text"


def format_by_name(file: Path) -> FileFormat | None:
    """The format that a file's extension stands for, or None."""
    name = file.name.lower().removesuffix(".gz")
    return _EXTENSIONS.get(Path(name).suffix)


def format_of(file: Path) -> FileFormat:
    """The format that a file's extension stands for.

    Raises:
        InputError: the extension is not a known one.
    """
    found = format_by_name(file)
    if found is None:
        raise InputError(
            f"the format of {file} is not clear from its name: set data.format to one of "
            f"{', '.join(get_args(FileFormat))}"
        )
    if found == "jsonl" and ".json" in file.suffixes:
        with _reading(file, found), _open_text(file) as lines:
            return "squad" if is_squad(lines) else found
    return found


def column_names(file: Path, form: FileFormat) -> list[str]:
    """The columns of a file, from its head alone (of JSON lines: the first line's fields)."""
    with _reading(file, form):
        if form == "text":
            return [TEXT_COLUMN]
        if form == "squad":
            return COLUMNS
        if form == "jsonl":
            with _open_text(file) as lines:
                return list(next(json_rows(lines, file), {}))
        if form == "parquet":
            from pyarrow import parquet

            return list(parquet.read_schema(file).names)
        if form == "conll":
            with _open_text(file) as lines:
                return conll_columns(lines)
        return list(_open_csv(file, form).schema.names)


def read_rows(
    file: Path,
    form: FileFormat,
    columns: Sequence[str],
    *,
    limit: int | None = None,
) -> "pa.Table":
    """Read some columns of one file.

    Args:
        file: what to read.
        form: its format.
        columns: which columns; all of them exist. Those of a csv or tsv file are strings, whatever
            they look like.
        limit: only so many rows from the top.

    Raises:
        InputError: the file cannot be read in that format.
    """
    with _reading(file, form):
        if form == "text":
            table = _read_text(file)
        elif form == "jsonl":
            with _open_text(file) as lines:
                table = json_table(json_rows(lines, file), columns, limit, file)
        elif form == "squad":
            with _open_text(file) as lines:
                table = json_table(squad_rows(lines, file), columns, limit, file)
        elif form == "parquet":
            table = _read_parquet(file, columns)
        elif form == "conll":
            table = _read_conll(file, columns, limit)
        else:
            if form == "csv":
                require_closed_quotes(file)
            table = _open_csv(file, form, list(columns)).read_all()
        table = table if limit is None else table.slice(0, limit)
        table.validate(full=True)  # parquet files are not looked at when they are read
        refuse_zero_bytes(table, file)
        return table


@contextmanager
def _reading(file: Path, form: FileFormat) -> Iterator[None]:
    import pyarrow as pa

    try:
        if form != "parquet":
            require_utf8(file)
        yield
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, pa.ArrowException) as error:
        if "Empty CSV file" in str(error):
            fault = "has no row behind its first line" if file.stat().st_size else "is empty"
            raise InputError(f"{file} {fault}: data.path needs a file with rows in it") from error
        if form == "csv" and "straddling" in str(error):  # a cell of a megabyte
            require_closed_quotes(file)
        raise InputError(
            f"{file} cannot be read as {form}: {first_line(error)}. Mend the file, "
            "or set data.format if it is of another format"
        ) from error


def _open_text(file: Path) -> IO[str]:
    if file.suffix == ".gz":
        return gzip.open(file, "rt", encoding="utf-8-sig")
    return file.open(encoding="utf-8-sig")


def _read_text(file: Path) -> "pa.Table":
    import pyarrow as pa

    with _open_text(file) as lines:
        return pa.table({TEXT_COLUMN: [line.rstrip("\n") for line in lines if line.strip()]})


def _read_conll(file: Path, columns: Sequence[str], limit: int | None) -> "pa.Table":
    import pyarrow as pa

    present = column_names(file, "conll")
    with _open_text(file) as lines:
        sentences = list(islice(conll_sentences(lines, len(present), file), limit))
    places = {column: present.index(column) for column in columns}
    kind = pa.list_(pa.string())
    return pa.table(
        {
            column: pa.array([[cells[at] for cells in words] for words in sentences], kind)
            for column, at in places.items()
        }
    )


def _read_parquet(file: Path, columns: Sequence[str]) -> "pa.Table":
    from pyarrow import parquet

    return parquet.read_table(file, columns=list(columns))


def _open_csv(
    file: Path, form: FileFormat, columns: list[str] | None = None
) -> "pa_csv.CSVStreamingReader":
    import pyarrow as pa
    from pyarrow import csv

    tsv = form == "tsv"
    return csv.open_csv(
        file,
        # One thread, so that an error can name the row.
        read_options=csv.ReadOptions(use_threads=False),
        # Quotes in a tsv file are text: GLUE and MRPC are written without quoting.
        parse_options=csv.ParseOptions(
            delimiter="\t" if tsv else ",",
            quote_char=False if tsv else '"',
            newlines_in_values=not tsv,
        ),
        # Everything as strings: the words "null" and "None" are text like any other.
        convert_options=csv.ConvertOptions(
            include_columns=columns, column_types={c: pa.string() for c in columns or []}
        ),
    )
