"""Every format gives the rows that were put in."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from lightning_compress.data.local_files import (
    FileFormat,
    column_names,
    format_of,
    read_rows,
)
from lightning_compress.errors import InputError

TEXTS = ['she said "go"', "null", "None", "3", 'a, b "" c', "tab-free é"]
LABELS = [0, 1, 1, 0, 1, 0]
ROWS: list[dict[str, Any]] = [{"text": t, "label": y} for t, y in zip(TEXTS, LABELS, strict=True)]


def quoted(text: str) -> str:
    doubled = text.replace('"', '""')
    return f'"{doubled}"'


CONTENTS: dict[str, str] = {
    "rows.csv": "text,label\n" + "".join(f"{quoted(r['text'])},{r['label']}\n" for r in ROWS),
    "rows.tsv": "text\tlabel\n" + "".join(f"{r['text']}\t{r['label']}\n" for r in ROWS),
    "rows.jsonl": "\n".join(json.dumps(r) for r in ROWS),
}


def write(folder: Path, name: str) -> Path:
    file = folder / name
    plain = name.removesuffix(".gz")
    if plain == "rows.parquet":
        parquet.write_table(pa.Table.from_pylist(ROWS), file)
    elif name.endswith(".gz"):
        file.write_bytes(gzip.compress(CONTENTS[plain].encode()))
    else:
        file.write_bytes(CONTENTS[plain].encode())
    return file


@pytest.mark.parametrize("name", [*CONTENTS, *(f"{n}.gz" for n in CONTENTS), "rows.parquet"])
def test_rows_come_back(tmp_path: Path, name: str) -> None:
    file = write(tmp_path, name)
    form = format_of(file)
    assert column_names(file, form) == ["text", "label"]
    rows = read_rows(file, form, ["text", "label"]).to_pylist()
    typed = form in ("jsonl", "parquet")  # the others hold strings, whatever they look like
    assert rows == [{**row, "label": row["label"] if typed else str(row["label"])} for row in ROWS]
    labels = read_rows(file, form, ["label"], limit=2).column("label").to_pylist()
    assert [int(label) for label in labels] == [0, 1]


def test_csv_with_line_breaks_byte_order_mark_and_crlf(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_bytes(b'\xef\xbb\xbftext,label\r\n"two\nlines",1\r\nx,2\r\n')
    assert read_rows(file, "csv", ["text"]).to_pylist() == [{"text": "two\nlines"}, {"text": "x"}]


def test_text_lines_without_empty_ones(tmp_path: Path) -> None:
    file = tmp_path / "wiki.valid.tokens"
    file.write_text(" \n = Title = \n \nA line . \n")
    assert format_of(file) == "text"
    assert column_names(file, "text") == ["text"]
    assert read_rows(file, "text", ["text"]).column("text").to_pylist() == [
        " = Title = ",
        "A line . ",
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.csv", b"", "is empty"),
        ("rows.csv", b"text,label\na,1\nb\n", "Row #3"),
        ("rows.csv", b"text,label\ncaf\xe9,1\n", "UTF8"),
        ("rows.jsonl", b'{"text": "a"}\nnot json\n', "line 2 is not JSON"),
        ("rows.jsonl", b'[{"text": "a"}]\n', "one object a line"),
        ("rows.jsonl.gz", b"\x1f\x8b\x08cut", "cannot be read as jsonl"),
        ("rows.parquet", b"PAR1", "cannot be read as parquet"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    form: FileFormat = format_of(file)
    with pytest.raises(InputError, match=message) as error:
        read_rows(file, form, ["text"])
    assert str(file) in str(error.value)


def test_unknown_extension_names_the_option(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data\.format"):
        format_of(tmp_path / "rows.dat")
