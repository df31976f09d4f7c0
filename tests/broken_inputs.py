"""Broken inputs of every kind: what writes them, and the line that each is refused with."""

import gzip
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

TEXT = "TextClassificationDataModule"
TAGS = "TokenClassificationDataModule"
QA = "QuestionAnsweringDataModule"
PAIRS = "SentencePairDataModule"
QUERIES = "RerankingDataModule"
LM = "LanguageModelingDataModule"

# Rows without fault: each broken file has some of them before the one that is broken.
GOOD: dict[str, list[dict[str, Any]]] = {
    TEXT: [{"text": f"w{i % 9} w5", "label": ["bad", "good"][i % 2]} for i in range(12)],
    TAGS: [{"tokens": [f"w{i % 9}", "w5"], "tags": ["B-x", "O"]} for i in range(12)],
    QA: [
        {
            "question": "w1 ?",
            "context": "w1 w2 w3",
            "answers": {"text": ["w2"], "answer_start": [3]},
        }
        for _ in range(12)
    ],
    PAIRS: [
        {"sentence1": f"w{i % 9}", "sentence2": "w5 w6", "score": i / 12} for i in range(12)
    ],
    QUERIES: [
        {"query": f"w{i // 4}", "document": f"w5 w{i}", "label": int(i % 4 == 0)} for i in range(12)
    ],
    LM: [{"text": f"w{i % 9} w5 w6"} for i in range(12)],
}  # fmt: skip


@dataclass(frozen=True)
class Broken:
    """An input that has to be refused.

    Args:
        name: what is wrong.
        write: writes the files into a folder and gives the options of the data.
        message: a regular expression for the line.
        data: the data module.
        slow: left to the whole suite.
    """

    name: str
    write: Callable[[Path], dict[str, Any]]
    message: str
    data: str = TEXT
    slow: bool = True


def of_bytes(name: str, content: bytes, **options: Any) -> Callable[[Path], dict[str, Any]]:
    """A file with some bytes."""

    def write(folder: Path) -> dict[str, Any]:
        (folder / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
        return {"path": str(folder / name), **options}

    return write


def of_lines(data: str, *lines: str, **options: Any) -> Callable[[Path], dict[str, Any]]:
    """Rows without fault and some further lines of JSON."""
    rows = [json.dumps(row) for row in GOOD[data]]
    return of_bytes("rows.jsonl", "\n".join([*rows, *lines]).encode(), **options)


def row(data: str, name: str, message: str, slow: bool = True, **changed: Any) -> Broken:
    """Rows without fault, and one of which some columns are changed."""
    line = json.dumps({**GOOD[data][0], **changed})
    return Broken(f"{data[:6]}: {name}", of_lines(data, line), message, data, slow)


def rows(data: str, name: str, message: str, column: str, value: Any, slow: bool = True) -> Broken:
    """Rows that all have the same value in a column."""
    lines = "\n".join(json.dumps({**one, column: value}) for one in GOOD[data])
    write = of_bytes("rows.jsonl", lines.encode())
    return Broken(f"{data[:6]}: {name}", write, message, data, slow)


def of_table(data: str, column: str, values: pa.Array) -> Callable[[Path], dict[str, Any]]:
    """A parquet file without fault, but for a column with 12 other values."""

    def write(folder: Path) -> dict[str, Any]:
        table = pa.Table.from_pylist(GOOD[data])
        place = table.column_names.index(column)
        parquet.write_table(table.set_column(place, column, values), folder / "rows.parquet")
        return {"path": str(folder / "rows.parquet")}

    return write


def cut(name: str, data: str = TEXT) -> Callable[[Path], dict[str, Any]]:
    """The first half of a file."""

    def write(folder: Path) -> dict[str, Any]:
        lines = "\n".join(json.dumps({**one, "n": os.urandom(99).hex()}) for one in GOOD[data])
        if name.endswith("parquet"):
            parquet.write_table(pa.Table.from_pylist(GOOD[data]), folder / name)
        else:
            (folder / name).write_bytes(gzip.compress(lines.encode()))
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: len(whole) // 2])
        return {"path": str(folder / name)}

    return write


DEEP = "[" * 20_000
WIDE = 10**30
SURROGATE = "a \ud800"
NUL = "a\0b"


def _replaced(data: str, column: str, text: str, message: str, name: str) -> Broken:
    """A row with a value that Python does not write as JSON."""
    line = json.dumps({**GOOD[data][0], column: "X"}).replace('"X"', text)
    return Broken(f"{data[:6]}: {name} in {column}", of_lines(data, line), message, data)


def _labels() -> Iterator[Broken]:
    for data, column in ((TEXT, "label"), (TAGS, "tags"), (PAIRS, "score"), (QUERIES, "label")):

        def cell(value: Any, many: bool = data == TAGS) -> Any:
            return [value, value] if many else value

        quick = data == TEXT
        for name, value, all_rows, one_row in (
            (
                "dict",
                {"a": 1},
                f"data.{column} holds struct",
                f"row 13 has .*a.* in column {column}",
            ),
            (
                "list of lists",
                [[1], [2]],
                f"data.{column} holds list",
                f"row 13 has .*column {column}",
            ),
            ("wide number", WIDE, "row 1 has .*at most 64 bits", f"row 13 has .*column {column}"),
            ("null", None, "no label|without a tag", "no label|without a tag"),
            ("infinite", float("inf"), "an infinite number", "infinite|row 13 has"),
            ("surrogate", SURROGATE, "row 1 has .*surrogate", "row 13 has"),
            ("NUL", NUL, "row 1 has a zero byte", "row 13 has"),
        ):
            yield rows(
                data, f"{column} {name} everywhere", all_rows, column, cell(value), not quick
            )
            yield row(data, f"{column} {name} once", one_row, **{column: cell(value)})
        yield _replaced(data, column, "9" * 5000, "line 13 has a number of thousands", "digits")
        yield _replaced(data, column, DEEP, "line 13 is nested too deep", "brackets")
        binary = pa.array([b"\xff"] * 12, pa.binary())
        holds = "holds binary"
        yield Broken(f"{data[:6]}: bytes", of_table(data, column, binary), holds, data)
    maps = pa.array([[("a", 1)]] * 12, pa.map_(pa.string(), pa.int64()))
    yield Broken("maps", of_table(TEXT, "label", maps), "data.label holds map", slow=False)
    wide = pa.array([2**63 + 5] * 12, pa.uint64())
    yield Broken("uint64", of_table(TEXT, "label", wide), "number that is too large")
    for name, listed, message in (
        ("null", ["a", None], "holds an empty label"),
        ("list", [["a"]], "data.label holds list"),
        ("dict", [{"a": 1}], "data.label holds struct"),
        ("wide", [WIDE], "at most 64 bits"),
        ("fractions", [0.5, 0.2], "labels are whole numbers or names"),
        ("nothing", [], "every list is empty"),
    ):
        yield rows(TEXT, f"lists with {name}", message, "label", listed)
    for count, column, message in (
        (100_000, "number", "100000 different labels in 100000 rows.*regression.*num_labels"),
        (1500, "name", "1500 different labels .*texts or ids.*num_labels: 1500"),
    ):
        lines = [json.dumps({"text": "w1", "number": i, "name": f"w{i}"}) for i in range(count)]
        write = of_bytes("rows.jsonl", "\n".join(lines).encode(), label=column)
        yield Broken(f"{count} classes", write, message)


def _texts() -> Iterator[Broken]:
    invalid = pa.Array.from_buffers(pa.string(), 12, pa.array([b"\xff"] * 12).buffers())
    for data, columns in {
        TEXT: ["text"], TAGS: ["tokens"], PAIRS: ["sentence1", "sentence2"],
        QA: ["question", "context"], QUERIES: ["query", "document"], LM: ["text"],
    }.items():  # fmt: skip
        listed = data == TAGS
        for column in columns:
            for name, value, message in (
                ("null", None, "row 13 .*(tokens|no text|nothing) in column"),
                ("blank", "" if column == "query" else " ", "row 13 .*(tokens|no text|nothing) in"),
                ("number", 7, "row 13 has 7 in column|of several kinds"),
                ("dict", {"a": 1}, "row 13 has .* in column"),
                ("surrogate", SURROGATE, "row 13 .*surrogate|row 13 .*in column tokens"),
                ("NUL", NUL, "row 13 has a zero byte|row 13 .*in column tokens"),
            ):
                message = "row 13|words in column" if listed else message
                changed: dict[str, Any] = {column: value}
                yield row(data, f"{name} in {column}", message, **changed)
        yield _replaced(data, columns[0], DEEP, "line 13 is nested too deep", "brackets")
        if not listed:
            write = of_table(data, columns[0], invalid)
            yield Broken(f"{data[:6]}: invalid UTF-8 in parquet", write, "Invalid UTF8", data)
        for end in ("jsonl.gz", "parquet"):
            yield Broken(
                f"{data[:6]}: half of {end}", cut("rows." + end, data), "cannot be read", data
            )
    for name, words in (("null", [None]), ("empty", []), ("number", [1, 2])):
        yield rows(TAGS, f"words {name}", "row 1", "tokens", words)
    for name, word in (("surrogate", SURROGATE), ("NUL", NUL)):
        yield row(TAGS, f"word {name}", f"row 13 has .*{name if name == 'surrogate' else 'zero'}",
                  tokens=["w1", word])  # fmt: skip


def _answers() -> Iterator[Broken]:
    for name, value, message in (
        ("null", None, "row 1 has no answer"),
        ("number", 3, "row 1 has 3 in column answers"),
        ("no starts", {"text": ["w2"]}, "row 1 has .*answer_start"),
        ("unequal", {"text": ["w2"], "answer_start": [3, 4]}, "row 1 has .*in column answers"),
        ("wide", {"text": ["w2"], "answer_start": [WIDE]}, "row 1 has .*64 bits"),
        ("negative", {"text": ["w2"], "answer_start": [-5]}, "row 1: .* is not at character -5"),
        ("fraction", {"text": ["w2"], "answer_start": [3.5]}, "3.5 is no whole number"),
        ("boolean", {"text": ["1"], "answer_start": [True]}, "True is no whole number"),
        ("infinite", {"text": ["w2"], "answer_start": [float("inf")]}, "inf is no whole number"),
        ("surrogate", {"text": [SURROGATE], "answer_start": [3]}, "row 1 has .*surrogate"),
        ("NUL", {"text": [NUL], "answer_start": [3]}, "row 1 has a zero byte"),
    ):
        yield rows(QA, f"answers {name}", message, "answers", value)
    nested = "is not nested as SQuAD's files are"
    for name, text, message in (
        ("numbers", '{"data": [1]}', nested),
        ("paragraphs", '{"data": [{"paragraphs": 3}]}', nested),
        ("nothing", '{"data": []}', "has no rows"),
        ("half", '{"data": [{"paragraphs": [', "is not JSON"),
        ("brackets", '{"data": ' + DEEP, "is nested too deep"),
        ("digits", '{"data": [' + "9" * 5000 + "]}", "a number of thousands of digits"),
    ):
        yield Broken(f"SQuAD {name}", of_bytes("rows.json", text.encode()), message, QA)


def _files() -> Iterator[Broken]:
    csv = "text,label\n" + "w1,a\nw2,b\n" * 6
    for name, end, content, message in (
        ("empty", "csv", b"", "is empty"),
        ("empty", "jsonl", b"", "no column, it is empty"),
        ("empty", "parquet", b"", "cannot be read as parquet"),
        ("empty", "csv.gz", b"", "no row|is empty"),
        ("header", "csv", b"text,label\n", "has no rows"),
        ("ragged", "csv", (csv + "w1,a,b\n").encode(), "Row #14"),
        ("twice", "csv", b"text,text,label\na,b,c\nd,e,f\n", "has 2 columns 'text'"),
        ("open quote", "csv", (csv + '"w3,b\nw4,a\n').encode(), "behind line 13 and|Row"),
        ("open last quote", "csv", (csv + 'w3,"b\nw4,a\n').encode(), "behind line 13 and never"),
        ("UTF-16", "csv", csv.encode("utf-16"), "is in UTF-16"),
        ("UTF-16", "jsonl", csv.encode("utf-16"), "is in UTF-16"),
        ("Latin-1", "csv", csv.encode() + b"caf\xe9,a\n", "invalid UTF8"),
        ("Latin-1", "jsonl", b'{"text": "caf\xe9", "label": 1}', "can't decode byte 0xe9"),
        ("NUL", "csv", csv.encode() + b"a\0b,a\n", "row 13 has a zero byte"),
        ("NUL", "jsonl", bytes(200), "line 1 is not JSON"),
        ("array", "jsonl", b"[" + b'{"text": "a"},' * 3 + b"]", "line 1 is not JSON"),
        ("number", "jsonl", b"3\n", "one object a line"),
        ("half a line", "jsonl", b'{"text": "a', "line 1 is not JSON"),
        ("bytes", "parquet", bytes(range(256)) * 9, "cannot be read as parquet"),
        ("control characters", "csv", b"\x1b[2J\x07,a\n1,2\n", r"\\x1b\[2J"),
        ("10,000 columns", "csv", ",".join(map(str, range(10**4))).encode() + b"\n", "data.text"),
    ):  # fmt: skip
        write = of_bytes(f"rows.{end}", content)
        yield Broken(f"{name} {end}", write, message, slow=name not in ("UTF-16", "NUL", "header"))
    yield Broken("NUL txt", of_bytes("rows.txt", b"w1 w2\nw3\0\n"), "row 2 has a zero byte", LM)
    yield Broken("empty txt", of_bytes("rows.txt", b""), "has no rows", LM)
    yield Broken("Latin-1 conll", of_bytes("rows.conll", b"caf\xe9 O\n"), "0xe9", TAGS)
    yield Broken("NUL conll", of_bytes("rows.conll", b"a\0 O\n\nw B-x\n"), "zero byte", TAGS)
    yield Broken("empty conll", of_bytes("rows.conll", b""), "it is empty", TAGS)
    yield Broken(
        "ragged conll", of_bytes("rows.conll", b"w1 O\nw2\n"), "line 2 has 1 columns", TAGS
    )


def _at(path: str, **options: Any) -> Callable[[Path], dict[str, Any]]:
    def write(folder: Path) -> dict[str, Any]:
        (folder / "sub").mkdir()
        (folder / "some.csv").write_text("text,label\nw1,a\nw2,b\n")
        os.mkfifo(folder / "fifo.csv")
        (folder / "loop.csv").symlink_to(folder / "loop.csv")
        (folder / "gone.csv").symlink_to(folder / "nowhere")
        (folder / "zero.csv").symlink_to("/dev/zero")
        (folder / "closed.csv").write_text("text,label\nw1,a\nw2,b\n")
        (folder / "closed.csv").chmod(0)
        return {"path": path.format(folder), **options}

    return write


def _places() -> Iterator[Broken]:
    for path, whole, split in (
        ("/dev/zero", "is a device or a pipe", "is a device or a pipe"),
        ("/dev/null", "is a device or a pipe", "is a device or a pipe"),
        ("fifo.csv", "is a device or a pipe", "is a device or a pipe"),
        ("zero.csv", "is a device or a pipe", "is a device or a pipe"),
        ("loop.csv", "there is no file or folder", "there is no file"),
        ("gone.csv", "there is no file or folder", "there is no file"),
        ("sub", "no file in .* is named after a split", "is a folder"),
        ("some.csv/x", "there is no file or folder", "there is no file"),
        ("a" * 300, "is too long", "is too long"),
        ("a/" * 4000, "is too long", "is too long"),
        ("~nobodys/x.csv", "cannot be looked up", "cannot be looked up"),
        ("", "data.path is ''", "train is ''"),
        ("a\0b.csv", "data.path is ", "train is "),
    ):
        inside = path if not path or path[0] in "/~" or "\0" in path else "{0}/" + path
        quick = path in ("/dev/zero", "fifo.csv")
        yield Broken(f"path {path[:12]!r}", _at(inside), whole, slow=not quick)
        write = _at("{0}", splits={"train": path})
        yield Broken(f"split {path[:12]!r}", write, split)
    if os.geteuid():
        yield Broken("closed", _at("{0}/closed.csv"), "closed.csv cannot be read")
    for splits, message in (
        ({"train": []}, "data.splits.train is empty"),
        ({}, "no train split"),
        ({"trian": "some.csv"}, "must be one of train, .*not 'trian'"),
    ):
        yield Broken(f"splits {splits}", _at("{0}", splits=splits), message)
    for cache in ("/dev/null", "~nobodys/x", "a" * 300):
        yield Broken(f"cache {cache[:12]}", _at("{0}/some.csv", cache_dir=cache), "data.cache_dir")
    for name in ("/dev/null", "~nobodys/x", "a" * 300):
        yield Broken(
            f"tokenizer {name[:12]}", _at("{0}/some.csv", tokenizer=name), "data.tokenizer"
        )


ALL = [*_labels(), *_texts(), *_answers(), *_files(), *_places()]
