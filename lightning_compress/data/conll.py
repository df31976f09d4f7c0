"""Sentences out of CoNLL files: one word a line with its tags in further columns.

A blank line ends a sentence; ``-DOCSTART-`` lines separate documents. Columns are separated by
tabs, or by spaces where a line has no tab. The first holds the words, the last the tags. Tjong Kim
Sang, De Meulder, "Introduction to the CoNLL-2003 Shared Task", 2003, https://aclanthology.org/W03-0419.
"""

from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path

from lightning_compress.errors import InputError

WORDS_COLUMN, TAGS_COLUMN = "tokens", "tags"


def conll_columns(lines: Iterable[str]) -> list[str]:
    """Names of the columns, by the first word: ``tokens``, ``column2``, ..., ``tags``."""
    count = next((len(_cells(line)) for line in lines if not _is_break(line)), 0)
    between = [f"column{number}" for number in range(2, count)]
    return [WORDS_COLUMN, *between, TAGS_COLUMN][:count]


def conll_sentences(lines: Iterable[str], columns: int, file: Path) -> Iterator[list[list[str]]]:
    """The sentences of a file, each as a list of words with their cells.

    Raises:
        InputError: a line has another number of columns than the first.
    """
    for is_break, numbered in groupby(enumerate(lines, start=1), key=lambda one: _is_break(one[1])):
        if is_break:
            continue
        sentence = []
        for number, line in numbered:
            cells = _cells(line)
            if len(cells) != columns:
                raise InputError(
                    f"{file}, line {number} has {len(cells)} columns and the first word {columns}: "
                    "mend the line (a blank line ends a sentence)"
                )
            sentence.append(cells)
        yield sentence


def _is_break(line: str) -> bool:
    return not line.strip() or line.startswith("-DOCSTART-")


def _cells(line: str) -> list[str]:
    line = line.rstrip("\r\n")
    return [cell.strip(" ") for cell in line.split("\t")] if "\t" in line else line.split()
