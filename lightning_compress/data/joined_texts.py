"""Examples of several sources as one data set."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_compress.data.collation import Sequences


class JoinedTexts:
    """The examples of the first part, then those of the second, and so on.

    Args:
        parts: examples with different ids.
    """

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
