"""Labels of extractive question answering: where the answer is, and all that it is judged by.

An answer is judged as text, over all windows of its context, and a metric sees nothing but labels.
So the label of a window tells the texts, too: the places of its tokens, its characters and the
answers that count as right, all as numbers in one row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

_HEADER = 8
_BETWEEN = "\0"  # answers


@dataclass(frozen=True)
class AnswerLabel:
    """What is known of a window.

    Args:
        start, end: the tokens where the answer starts and ends; 0 if it is not in the window.
        question: number of the question, to find all windows of a context.
        unanswerable: whether a question may have no answer, which is then position 0.
        first: the first token of the context.
        offsets: [N, 2] where the N tokens of the context start and end in ``text``.
        text: the part of the context.
        answers: all that count as right; none for a question without an answer.
    """

    start: int
    end: int
    question: int
    unanswerable: bool
    first: int
    offsets: NDArray[np.int32]
    text: str
    answers: Sequence[str]

    def encoded(self, length: int) -> NDArray[np.int32]:
        """As a row of numbers, filled up to a length."""
        answers = [ord(letter) for letter in _BETWEEN.join(self.answers)]
        header = [
            self.start, self.end, self.question, int(self.unanswerable), self.first,
            len(self.offsets), len(self.text), len(answers),
        ]  # fmt: skip
        row = np.zeros(length, dtype=np.int32)
        parts = [header, self.offsets.reshape(-1), [ord(letter) for letter in self.text], answers]
        numbers = np.concatenate([np.asarray(part, dtype=np.int32) for part in parts])
        row[: len(numbers)] = numbers
        return row

    @property
    def size(self) -> int:
        """Numbers that it takes."""
        answers = _BETWEEN.join(self.answers)
        return _HEADER + self.offsets.size + len(self.text) + len(answers)


def decoded(row: NDArray[np.int32]) -> AnswerLabel:
    """Read a row that :meth:`AnswerLabel.encoded` made."""
    start, end, question, unanswerable, first, tokens, letters, answers = row[:_HEADER].tolist()
    ends = np.cumsum([_HEADER, 2 * tokens, letters, answers])
    offsets, text, gold = (row[a:b] for a, b in pairwise(ends.tolist()))
    right = "".join(map(chr, gold))
    return AnswerLabel(
        start=start,
        end=end,
        question=question,
        unanswerable=bool(unanswerable),
        first=first,
        offsets=offsets.reshape(-1, 2),
        text="".join(map(chr, text)),
        answers=right.split(_BETWEEN) if right else (),
    )
