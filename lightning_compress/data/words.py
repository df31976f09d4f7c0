"""Texts that come as lists of words: what a row may hold, and how words become tokens."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lightning_compress.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def checked_words(values: Sequence[Any], column: str, where: str, first: int) -> list[list[str]]:
    """See that every row is a list of words.

    Args:
        values: of the rows.
        column: name of their column.
        where: what error messages call the source.
        first: how many rows come before these.

    Raises:
        InputError: a row is none, is empty, or a word is empty.
    """
    for row, words in enumerate(values, start=first + 1):
        if not isinstance(words, list):
            raise InputError(
                f"{where}: row {row} has {words!r:.60} in column {column} and no list of words: "
                "write a jsonl or parquet file with lists, or a CoNLL file"
            )
        if not words:
            raise InputError(f"{where}: row {row} has no word in column {column}: take it out")
        for place, word in enumerate(words, start=1):
            if not isinstance(word, str) or not word:
                raise InputError(
                    f"{where}: row {row} has {word!r} as word {place} in column {column}: words "
                    "are strings of at least one character, mend it or take the row out"
                )
    return list(values)


def encoded_words(
    tokenizer: "PreTrainedTokenizerBase", sentences: Sequence[list[str]], where: str
) -> Iterator[tuple[list[int], list[int] | None]]:
    """Tokenize lists of words, without special tokens.

    The tokens are those of the running text, the words with spaces between them. A word of which
    the tokenizer keeps nothing (such as a zero-width character) becomes its unknown token, so that
    every word has a token.

    Args:
        tokenizer: a fast one, which knows the places of its tokens in the text.
        sentences: at least one word each.
        where: what error messages call the source.

    Yields:
        The token ids of a sentence and, for each of them, 1 at the first token of a word, else 0.

    Raises:
        InputError: the tokenizer is a slow one, or lacks an unknown token where one is needed.
    """
    if not tokenizer.is_fast:
        raise InputError(
            "data.tokenizer does not tell which word a token belongs to: use one with a "
            "tokenizer.json (a fast tokenizer)"
        )
    encoded = tokenizer(
        [" ".join(words) for words in sentences],
        add_special_tokens=False,
        return_offsets_mapping=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    rows = zip(sentences, encoded["input_ids"], encoded["offset_mapping"], strict=True)
    for words, ids, spans in rows:
        pieces: list[list[int]] = [[] for _ in words]
        for id_, word in zip(ids, _words_at(words, spans), strict=True):
            pieces[word].append(id_)
        for word, mine in zip(words, pieces, strict=True):
            if not mine:
                mine.append(_unknown(tokenizer, word, where))
        flat = [id_ for mine in pieces for id_ in mine]
        yield flat, [int(place == 0) for mine in pieces for place in range(len(mine))]


def _words_at(words: Sequence[str], spans: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
    """The word that each token belongs to, by its last character; a space is the next word's."""
    lengths = np.array([len(word) + 1 for word in words])
    spaces_before = np.cumsum(lengths) - lengths - 1
    last = [max(start, end - 1) for start, end in spans]
    return np.searchsorted(spaces_before, last, side="right") - 1


def _unknown(tokenizer: "PreTrainedTokenizerBase", word: str, where: str) -> int:
    if tokenizer.unk_token_id is None:
        raise InputError(
            f"{where}: data.tokenizer finds no token in the word {word!r} and has no unknown "
            "token: take the word out"
        )
    return int(tokenizer.unk_token_id)
