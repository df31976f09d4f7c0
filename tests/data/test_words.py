"""Words become the tokens of the running text, and the first token of each is known."""

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lightning_compress.data.words import checked_words, encoded_words
from lightning_compress.errors import InputError

SENTENCE = ["abc", "good", "New York", "x.y", "bad"]


def encoded(tokenizer: PreTrainedTokenizerBase, words: list[str]) -> list[list[str]]:
    """The tokens of each word, as text."""
    ((ids, marks),) = encoded_words(tokenizer, [words], "here")
    found: list[list[str]] = []
    for token, mark in zip(tokenizer.convert_ids_to_tokens(ids), marks or [], strict=True):
        if mark:
            found.append([])
        found[-1].append(token)
    return found


@pytest.mark.parametrize("name", ["bert_tokenizer", "gpt2_tokenizer"])
def test_tokens_are_those_of_the_running_text(name: str, request: pytest.FixtureRequest) -> None:
    tokenizer = AutoTokenizer.from_pretrained(request.getfixturevalue(name))
    found = encoded(tokenizer, SENTENCE)
    assert len(found) == len(SENTENCE)
    assert [token for word in found for token in word] == tokenizer.tokenize(" ".join(SENTENCE))
    assert found[1] == tokenizer.tokenize("good" if name.startswith("bert") else " good")


def test_a_word_without_tokens_becomes_unknown(bert_tokenizer: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(bert_tokenizer)
    assert encoded(tokenizer, ["\u200d", "good", "\ufe0f", "\u200d"]) == [
        ["[UNK]"], ["good"], ["[UNK]"], ["[UNK]"],
    ]  # fmt: skip
    tokenizer.unk_token = None
    with pytest.raises(InputError, match="finds no token in the word"):
        encoded(tokenizer, ["\u200d"])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a text", "row 12 has 'a text' in column words and no list of words"),
        (None, "row 12 has None"),
        ([], "row 12 has no word"),
        (["a", ""], "row 12 has '' as word 2"),
        (["a", None], "row 12 has None as word 2"),
    ],
)
def test_rows_that_are_no_words_are_named(row: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        checked_words([["fine"], row], "words", "here", 10)
