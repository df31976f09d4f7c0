"""CoNLL files as rows of words and tags."""

import gzip
from pathlib import Path

import pytest

from lightning_compress.data.local_files import FileFormat, column_names, format_of, read_rows
from lightning_compress.errors import InputError

TWO = "Ada\tB-person\nLovelace\tI-person\n\nsleeps\tO\n"
FOUR = "-DOCSTART- -X- -X- O\n\nEU NNP I-NP B-ORG\nrejects VBZ I-VP O\n \n\nPeter NNP I-NP B-PER\n"


@pytest.mark.parametrize(
    ("name", "content", "columns", "words", "tags"),
    [
        ("a.conll", TWO, ["tokens", "tags"], [["Ada", "Lovelace"], ["sleeps"]],
         [["B-person", "I-person"], ["O"]]),
        ("a.bio", TWO.replace("\n", "\r\n"), ["tokens", "tags"],
         [["Ada", "Lovelace"], ["sleeps"]], [["B-person", "I-person"], ["O"]]),
        ("a.conll.gz", FOUR, ["tokens", "column2", "column3", "tags"],
         [["EU", "rejects"], ["Peter"]], [["B-ORG", "O"], ["B-PER"]]),
        ("a.iob2", "# a\tO\n\xa0\tO", ["tokens", "tags"], [["# a", "\xa0"]], [["O", "O"]]),
    ],
)  # fmt: skip
def test_sentences_are_rows(
    tmp_path: Path,
    name: str,
    content: str,
    columns: list[str],
    words: list[list[str]],
    tags: list[list[str]],
) -> None:
    file = tmp_path / name
    data = content.encode()
    file.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    form: FileFormat = format_of(file)
    assert form == "conll"
    assert column_names(file, form) == columns
    table = read_rows(file, form, ["tags", "tokens"])
    assert table.column("tokens").to_pylist() == words
    assert table.column("tags").to_pylist() == tags
    assert read_rows(file, form, ["tokens"], limit=1).num_rows == 1


def test_words_without_tags_and_an_empty_file(tmp_path: Path) -> None:
    file = tmp_path / "a.conll"
    file.write_text("one\ntwo\n")
    assert column_names(file, "conll") == ["tokens"]
    assert read_rows(file, "conll", ["tokens"]).to_pylist() == [{"tokens": ["one", "two"]}]
    file.write_text("\n")
    assert column_names(file, "conll") == []


def test_a_line_with_other_columns_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.conll"
    file.write_text("one O\ntwo\n")
    with pytest.raises(InputError, match=r"a\.conll, line 2 has 1 columns and the first word 2"):
        read_rows(file, "conll", ["tokens", "tags"])
