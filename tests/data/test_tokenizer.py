"""The tokens are the tokenizer's own, and a cache is used where nothing changed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from lightning_compress.data import token_cache
from lightning_compress.data.sources import FileSource
from lightning_compress.data.token_cache import Encoding, tokenized
from lightning_compress.data.tokenizer import (
    load_tokenizer,
    special_tokens_around,
    tokenizer_fingerprint,
    tokenizer_for,
)
from lightning_compress.errors import InputError

TEXTS = ["good a", "bad bad bad bad bad bad bad", "abc", "x y"]


@pytest.fixture
def rows(write_rows: Callable[..., Path]) -> FileSource:
    return FileSource((write_rows(TEXTS, [*TEXTS[1:], "good"]),))


def encode(
    source: FileSource, tokenizer: Any, columns: list[str], encoding: Encoding, folder: Path
) -> list[list[int]]:
    store = tokenized(source, columns, tokenizer, encoding, limit=None, cache_dir=folder)
    return [a.tolist() for a in np.split(store.tokens, store.offsets[1:-1])]


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
@pytest.mark.parametrize("columns", [["text"], ["text", "label"]])
def test_same_as_the_tokenizer_one_by_one(
    rows: FileSource, tmp_path: Path, request: Any, kind: str, columns: list[str]
) -> None:
    tokenizer = load_tokenizer(request.getfixturevalue(f"{kind}_tokenizer"))
    got = encode(rows, tokenizer, columns, Encoding(max_length=8), tmp_path)
    table = rows.read(columns).to_pylist()
    expected = [
        tokenizer(*(row[c] for c in columns), truncation=True, max_length=8)["input_ids"]
        for row in table
    ]
    assert got == expected


def test_pairs_keep_their_segments(rows: FileSource, tmp_path: Path, bert_tokenizer: str) -> None:
    tokenizer = load_tokenizer(bert_tokenizer)
    encoding = Encoding(max_length=8)
    options: dict[str, Any] = {"limit": 2, "cache_dir": tmp_path}
    store = tokenized(rows, ["text", "label"], tokenizer, encoding, **options)
    assert store.segments is not None
    expected = tokenizer(TEXTS[0], TEXTS[1], truncation=True, max_length=8)["token_type_ids"]
    assert store.segments[: store.offsets[1]].tolist() == expected
    assert len(store) == 2


def test_end_is_added_once(rows: FileSource, tmp_path: Path, gpt2_tokenizer: str) -> None:
    tokenizer = load_tokenizer(gpt2_tokenizer)
    got = encode(rows, tokenizer, ["text"], Encoding(end=0), tmp_path)
    assert got == [[*tokenizer(text)["input_ids"], 0] for text in TEXTS]


def test_frame(bert_tokenizer: str, gpt2_tokenizer: str) -> None:
    bert = load_tokenizer(bert_tokenizer)
    assert special_tokens_around(bert) == ((bert.cls_token_id,), (bert.sep_token_id,))
    assert special_tokens_around(load_tokenizer(gpt2_tokenizer)) == ((), ())


def test_without_padding_token_the_end_pads(gpt2_tokenizer: str) -> None:
    tokenizer = load_tokenizer(gpt2_tokenizer)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 0


def test_cache_depends_on_all_that_matters_and_nothing_else(
    rows: FileSource,
    tmp_path: Path,
    bert_tokenizer: str,
    write_rows: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    work: list[int] = []
    real = token_cache._encode_chunk

    def counted(*args: Any) -> Any:
        work.append(1)
        return real(*args)

    monkeypatch.setattr(token_cache, "_encode_chunk", counted)
    copy = tmp_path / "copy"
    shutil.copytree(bert_tokenizer, copy)
    tokenizer = load_tokenizer(bert_tokenizer)

    def made(source: FileSource = rows, max_length: int = 8, **options: Any) -> bool:
        before = len(work)
        given: dict[str, Any] = {
            "columns": ["text"],
            "tokenizer": tokenizer,
            "encoding": Encoding(max_length=max_length),
            "limit": None,
            "cache_dir": tmp_path,
        }
        tokenized(source, **{**given, **options})
        return len(work) > before

    assert made()
    assert not made()
    tokenizer(["a"], truncation=True, max_length=3, padding="max_length")
    assert not made(), "what a call left in the tokenizer does not matter"
    assert not made(tokenizer=load_tokenizer(str(copy))), "nor does its name"
    assert made(max_length=9)
    assert made(limit=3)
    assert made(columns=["label"])
    vocabulary = (copy / "vocab.txt").read_text()
    (copy / "vocab.txt").write_text(vocabulary.replace("good", "well"))
    assert made(tokenizer=load_tokenizer(str(copy)))
    write_rows(["other", *TEXTS[1:]], TEXTS)
    assert made()


def test_fingerprint_of_a_slow_tokenizer(bert_tokenizer: str, tmp_path: Path) -> None:
    class Slow:
        is_fast = False
        truncation_side = "right"

        def __init__(self, content: str) -> None:
            self.content = content

        def save_pretrained(self, folder: str) -> None:
            (Path(folder) / "vocab.json").write_text(self.content)

    one, same, other = (tokenizer_fingerprint(cast(Any, Slow(text))) for text in "aab")
    assert one == same != other


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["a", None], "row 2 has no text in column text"),
        (["a", " \n"], "row 2 has no text in column text"),
        ([], "has no rows"),
    ],
)
def test_rows_without_text(
    tmp_path: Path,
    bert_tokenizer: str,
    write_rows: Callable[..., Path],
    texts: list[str | None],
    message: str,
) -> None:
    source = FileSource((write_rows(texts, texts),))
    with pytest.raises(InputError, match=message):
        encode(source, load_tokenizer(bert_tokenizer), ["text"], Encoding(), tmp_path)


def test_text_that_is_none(
    tmp_path: Path, bert_tokenizer: str, write_rows: Callable[..., Path]
) -> None:
    source = FileSource((write_rows([1, 2], [0, 1]),))
    with pytest.raises(InputError, match="row 1 has 1, no text"):
        encode(source, load_tokenizer(bert_tokenizer), ["text"], Encoding(), tmp_path)


def test_text_without_tokens(
    tmp_path: Path, gpt2_tokenizer: str, write_rows: Callable[..., Path]
) -> None:
    source = FileSource((write_rows(["a", "\u00ad"], [0, 1]),))
    tokenizer = load_tokenizer(gpt2_tokenizer)
    tokenizer.backend_tokenizer.normalizer = __import__("tokenizers").normalizers.Replace(
        "\u00ad", ""
    )
    with pytest.raises(InputError, match="no token in row 2"):
        encode(source, tokenizer, ["text"], Encoding(), tmp_path)


@pytest.mark.usefixtures("offline")
def test_tokenizers_that_cannot_be_loaded(tmp_path: Path) -> None:
    for name in ("someone/no-such-model", str(tmp_path)):
        with pytest.raises(InputError, match=r"data\.tokenizer: .* neither a folder"):
            load_tokenizer(name)
    with pytest.raises(InputError, match=r"data\.tokenizer: name the tokenizer"):
        tokenizer_for("data.csv", None)


def test_tokenizer_with_nothing_to_pad_with(tmp_path: Path, gpt2_tokenizer: str) -> None:
    folder = tmp_path / "tokenizer"
    shutil.copytree(gpt2_tokenizer, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {"eos_token": None, "bos_token": None}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="neither a padding token nor an end-of-text token"):
        load_tokenizer(str(folder))
