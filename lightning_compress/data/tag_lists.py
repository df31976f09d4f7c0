"""A column with a list of tags in each row, one tag for each word of another column."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lightning_compress.data.label_column import is_list
from lightning_compress.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class TagLists:
    """The tags of all rows as their source has them.

    Args:
        lists: [N] the lists.
        offsets: [N + 1] where each begins among the tags of all.
        class_names: names of the tags 0, 1, ... where the source declares them.
    """

    lists: "pa.ChunkedArray"
    offsets: NDArray[np.int64]
    class_names: Sequence[str] | None

    @property
    def flat(self) -> "pa.ChunkedArray":
        """The tags of all rows, one after another."""
        from pyarrow import compute

        return compute.list_flatten(self.lists)

    def of_row(self, row: int) -> "pa.ChunkedArray":
        """The tags of one row."""
        from pyarrow import compute

        return compute.list_flatten(self.lists.slice(row, 1))


def tag_lists(
    table: "pa.Table", words: str, tags: str, class_names: Sequence[str] | None, where: str
) -> TagLists:
    """Read the tags of a table and see that there is one for each word.

    Args:
        table: with both columns.
        words: the column with the words.
        tags: the column with the tags.
        class_names: names of the tags 0, 1, ... where the source declares them.
        where: what error messages call the source.

    Raises:
        InputError: the columns hold no lists, or a row has not one tag for each word.
    """
    from pyarrow import compute

    for name, option in ((words, "words"), (tags, "tags")):
        kind = table.column(name).type
        if len(table) and not is_list(kind):
            raise InputError(
                f"{where}: column {name} holds {kind} and no lists: name the column with a list in "
                f"each row in data.{option}, or write jsonl, parquet or CoNLL files"
            )
    counts, others = (
        np.asarray(compute.fill_null(compute.list_value_length(table.column(name)), 0), np.int64)
        for name in (words, tags)
    )
    wrong = np.flatnonzero(counts != others)
    if len(wrong):
        row = wrong[0]
        raise InputError(
            f"{where}: row {row + 1} has {counts[row]} words in column {words} and {others[row]} "
            f"tags in column {tags}: each word needs one tag, mend the row or take it out"
        )
    found = TagLists(table.column(tags), np.concatenate([[0], np.cumsum(others)]), class_names)
    missing = np.flatnonzero(np.asarray(compute.is_null(found.flat)))
    if len(missing):
        row = np.searchsorted(found.offsets, missing[0], side="right")
        raise InputError(f"{where}: row {row} has a word without a tag: give it one, such as O")
    return found
