"""Texts joined end to end and cut into blocks of one length, so that no token is padding."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_compress.data.token_store import TokenStore


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
