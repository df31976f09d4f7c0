"""Rows of a token store as examples, each text a sequence of its own.

Examples of several sources as one data set.

Texts joined end to end and cut into blocks of one length, so that no token is padding.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_compress.data.dataset import Sequences
from lightning_compress.data.token_cache import TokenStore


class StoredTexts:
    """Some rows of a store, cut to a length and framed by special tokens if need be.

    Args:
        store: the tokens of all rows.
        rows: positions of the rows in the store.
        ids: stable ids of the rows, as many.
        max_length: longest sequence; longer texts are cut at their end.
        prefix: ids before each text; they count for the length.
        suffix: ids behind each text.
    """

    together = 1

    def __init__(
        self,
        store: TokenStore,
        rows: NDArray[np.int64],
        ids: NDArray[np.int64],
        *,
        max_length: int,
        prefix: tuple[int, ...] = (),
        suffix: tuple[int, ...] = (),
    ) -> None:
        self.store = store
        self.rows = rows
        self.ids = ids
        self._prefix, self._suffix = np.asarray(prefix, np.int64), np.asarray(suffix, np.int64)
        frame = len(prefix) + len(suffix)
        self._content = np.minimum(store.lengths[rows], max_length - frame)
        self.lengths = self._content + frame

    def tokens(self, index: int) -> NDArray[Any]:
        """Ids of one example."""
        tokens = self.store.tokens[self._place(index)]
        return np.concatenate([self._prefix, tokens, self._suffix], dtype=np.int64)

    def segments(self, index: int) -> NDArray[Any] | None:
        """Which text of a pair each token belongs to; None for single texts."""
        return None if self.store.segments is None else self.store.segments[self._place(index)]

    def _place(self, index: int) -> slice:
        first = self.store.offsets[self.rows[index]]
        return slice(first, first + self._content[index])


class StoredWords(StoredTexts):
    """Rows of a store of lists of words, which knows where each word starts."""

    def segments(self, index: int) -> None:
        """Words are single texts."""

    def starts(self, index: int) -> NDArray[np.int64]:
        """Places in an example of the first tokens of its words, as far as they are not cut."""
        assert self.store.segments is not None, "the store is one of words"
        return len(self._prefix) + np.flatnonzero(self.store.segments[self._place(index)])

    def lost(self) -> tuple[int, int]:
        """How many of the rows are cut, and how many words they lose."""
        assert self.store.segments is not None, "the store is one of words"
        cut = np.flatnonzero(self._content < self.store.lengths[self.rows]).tolist()
        behind = (
            self.store.segments[self._place(index).stop : self.store.offsets[self.rows[index] + 1]]
            for index in cut
        )
        return len(cut), sum(int(np.sum(marks)) for marks in behind)


class PairedTexts:
    """The texts of pairs as examples: both of the first pair, then both of the second, and so on.

    Args:
        first, second: as many examples each, with different ids.
    """

    together = 2

    def __init__(self, first: Sequences, second: Sequences) -> None:
        self.parts = (first, second)
        self.ids = np.stack([first.ids, second.ids], 1).ravel()
        self.lengths = np.stack([first.lengths, second.lengths], 1).ravel()

    def tokens(self, index: int) -> NDArray[Any]:
        """Ids of one example."""
        return self.parts[index % 2].tokens(index // 2)

    def segments(self, index: int) -> None:
        """Texts of pairs are single texts."""


class JoinedTexts:
    """The examples of the first part, then those of the second, and so on.

    Args:
        parts: examples with different ids.
    """

    together = 1

    def __init__(self, parts: Sequence[Sequences]) -> None:
        self.parts = parts
        self.ids = np.concatenate([part.ids for part in parts])
        self.lengths = np.concatenate([part.lengths for part in parts])
        self._ends = np.cumsum([len(part.ids) for part in parts])

    def tokens(self, index: int) -> NDArray[Any]:
        """Ids of one example."""
        part, place = self._place(index)
        return part.tokens(place)

    def segments(self, index: int) -> NDArray[Any] | None:
        """Which text of a pair each token belongs to; None for single texts."""
        part, place = self._place(index)
        return part.segments(place)

    def _place(self, index: int) -> tuple[Sequences, int]:
        number = int(np.searchsorted(self._ends, index, side="right"))
        part = self.parts[number]
        return part, index - int(self._ends[number]) + len(part.ids)


class PackedBlocks:
    """Blocks over the joined tokens of some rows of a store.

    Nothing is copied: a block is gathered from the store when it is asked for. Every token is in
    exactly one block, of which the last may be shorter. Texts bring their own separators.

    Args:
        store: the tokens of all rows.
        rows: positions of the rows in the store, in the order in which they are joined.
        first_id: id of the first block; the others count up.
        block: tokens of a block, with prefix and suffix.
        prefix: ids at the start of each block.
        suffix: ids at its end.
        shortest: a last block with fewer tokens of the texts is left out.
    """

    together = 1

    def __init__(
        self,
        store: TokenStore,
        rows: NDArray[np.int64],
        *,
        first_id: int,
        block: int,
        prefix: tuple[int, ...] = (),
        suffix: tuple[int, ...] = (),
        shortest: int = 1,
    ) -> None:
        self.store = store
        self.rows = rows
        self._prefix, self._suffix = np.asarray(prefix, np.int64), np.asarray(suffix, np.int64)
        frame = len(prefix) + len(suffix)
        self._room = block - frame
        # Where each text ends in the joined stream.
        self._ends = np.cumsum(store.lengths[rows])
        total = int(self._ends[-1]) if len(rows) else 0
        sizes = np.minimum(self._room, total - np.arange(0, total, self._room))
        sizes = sizes[sizes >= shortest]
        self.ids = first_id + np.arange(len(sizes), dtype=np.int64)
        self.lengths = sizes + frame

    def tokens(self, index: int) -> NDArray[Any]:
        """Ids of one block."""
        start = index * self._room
        stop = min(start + self._room, int(self._ends[-1]))
        parts: list[Any] = []
        text = int(np.searchsorted(self._ends, start, side="right"))
        while start < stop:
            ahead = int(self._ends[text]) - start  # what is left of this text
            first = int(self.store.offsets[self.rows[text] + 1]) - ahead
            taken = min(ahead, stop - start)
            parts.append(self.store.tokens[first : first + taken])
            start, text = start + taken, text + 1
        return np.concatenate([self._prefix, *parts, self._suffix], dtype=np.int64)

    def segments(self, index: int) -> None:
        """Blocks are single texts."""
