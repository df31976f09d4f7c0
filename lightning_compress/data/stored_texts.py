"""Rows of a token store as examples, each text a sequence of its own."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_compress.data.token_store import TokenStore


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
