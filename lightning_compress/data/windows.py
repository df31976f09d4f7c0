"""Questions with overlapping windows of their contexts, as sequences of tokens.

Devlin, Chang, Lee, Toutanova, "BERT: Pre-training of Deep Bidirectional Transformers for Language
Understanding", 2018, arXiv:1810.04805, section 4.2: the question and the context are one sequence,
in which two tokens are predicted, the first and the last of the answer.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lightning_compress.data.questions import Answer, Question
from lightning_compress.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CHUNK = 500  # questions that the tokenizer takes at a time


@dataclass(frozen=True)
class Window:
    """A question with a part of its context.

    Args:
        row: number of the question.
        tokens: [S] ids.
        segments: [S] which of the two texts a token belongs to; None if the model does not ask.
        first: the first token of the context.
        offsets: [N, 2] where the N tokens of the context start and end in it.
    """

    row: int
    tokens: NDArray[Any]
    segments: NDArray[Any] | None
    first: int
    offsets: NDArray[np.int32]

    @property
    def begin(self) -> int:
        """The first character of the context that is in the window."""
        return int(self.offsets[0, 0])

    @property
    def end(self) -> int:
        """The character behind the last."""
        return int(self.offsets[-1, 1])

    def span(self, answer: Answer) -> tuple[int, int] | None:
        """The tokens where an answer starts and ends; None if it is not wholly in the window."""
        if answer.start < self.begin or answer.end > self.end:
            return None
        start = int(np.searchsorted(self.offsets[:, 0], answer.start, side="right")) - 1
        end = int(np.searchsorted(self.offsets[:, 1], answer.end, side="left"))
        return self.first + start, self.first + max(start, end)


class QuestionWindows:
    """Some windows as examples.

    Args:
        windows: of all questions of a source.
        chosen: positions of the examples among them.
        first_id: id of the first window of the source; the others count up.
    """

    together = 1

    def __init__(self, windows: Sequence[Window], chosen: NDArray[np.int64], first_id: int) -> None:
        self.windows = [windows[place] for place in chosen]
        self.ids = first_id + chosen
        self.lengths = np.array([len(window.tokens) for window in self.windows], dtype=np.int64)

    def tokens(self, index: int) -> NDArray[Any]:
        """Ids of one example."""
        tokens: NDArray[Any] = self.windows[index].tokens
        return tokens

    def segments(self, index: int) -> NDArray[Any] | None:
        """Which of the two texts each token belongs to; None if the model does not ask."""
        segments: NDArray[Any] | None = self.windows[index].segments
        return segments


def require_room(
    tokenizer: "PreTrainedTokenizerBase",
    questions: Sequence[Question],
    where: str,
    *,
    max_length: int,
    overlap: int,
) -> None:
    """See that each window goes on beyond the one before.

    Raises:
        InputError: a question and the overlap leave no room, or the tokenizer cannot be used.
    """
    if not tokenizer.is_fast:
        raise InputError(
            "data.tokenizer does not tell where its tokens stand in the text: use one with a "
            "tokenizer.json (a fast tokenizer)"
        )
    special = tokenizer.num_special_tokens_to_add(pair=True)
    texts = [question.text for question in questions]
    ids = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
    lengths = np.array([len(one) for one in ids["input_ids"]])
    row = int(lengths.argmax())
    if lengths[row] + special + overlap >= max_length:
        raise InputError(
            f"{where}: row {row + 1} has a question of {lengths[row]} tokens, which with {special} "
            f"special tokens and data.overlap {overlap} leaves no room for the context in "
            f"data.max_length {max_length}: raise it, lower data.overlap, or take the row out"
        )


def windows_of(
    tokenizer: "PreTrainedTokenizerBase",
    questions: Sequence[Question],
    *,
    max_length: int,
    overlap: int,
) -> Iterator[Window]:
    """Tokenize questions with their contexts; a long context gives several windows.

    Args:
        tokenizer: a fast one.
        questions: for which there is room.
        max_length: tokens of a window, those of the question and special ones included.
        overlap: tokens of the context that neighbouring windows share.
    """
    paired = "token_type_ids" in tokenizer.model_input_names
    for begin in range(0, len(questions), _CHUNK):
        chunk = questions[begin : begin + _CHUNK]
        encoded = tokenizer(
            [question.text for question in chunk],
            [question.context for question in chunk],
            truncation="only_second",
            max_length=max_length,
            stride=overlap,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            return_attention_mask=False,
            return_token_type_ids=paired,
            verbose=False,
        )
        for place, row in enumerate(encoded["overflow_to_sample_mapping"]):
            places = [at for at, text in enumerate(encoded.sequence_ids(place)) if text == 1]
            if not places:
                continue  # a context without any token
            segments = encoded["token_type_ids"][place] if paired else None
            yield Window(
                row=begin + int(row),
                tokens=np.array(encoded["input_ids"][place], dtype=np.int32),
                segments=None if segments is None else np.array(segments, dtype=np.uint8),
                first=places[0],
                offsets=np.array(
                    [encoded["offset_mapping"][place][at] for at in places], dtype=np.int32
                ),
            )
