"""The cache on disk: whole or not there."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_compress.data.token_cache import EncodedText, TokenStore, cached_tokens
from lightning_compress.errors import InputError

TEXTS: list[EncodedText] = [([1, 2, 3], None), ([4], None), ([5, 6], None)]


def contents(store: TokenStore) -> list[list[int]]:
    return [a.tolist() for a in np.split(store.tokens, store.offsets[1:-1])]


def never() -> Iterator[EncodedText]:
    raise AssertionError("tokenized again")


@pytest.mark.parametrize(("vocabulary", "size"), [(65536, 2), (65537, 4)])
def test_written_once_and_compact(tmp_path: Path, vocabulary: int, size: int) -> None:
    folder = tmp_path / "tokens" / "key"
    cached_tokens(folder, vocabulary, lambda: TEXTS)
    store = cached_tokens(folder, vocabulary, never)
    assert contents(store) == [[1, 2, 3], [4], [5, 6]]
    assert store.lengths.tolist() == [3, 1, 2]
    assert store.segments is None
    assert len(store) == 3
    assert store.tokens.itemsize == size
    assert [path.name for path in folder.parent.iterdir()] == ["key"]


def test_segments_of_pairs(tmp_path: Path) -> None:
    store = cached_tokens(tmp_path / "key", 10, lambda: [([1, 2], [0, 1]), ([3], [0])])
    assert store.segments is not None
    assert store.segments.tolist() == [0, 1, 0]


def test_a_stop_half_way_leaves_no_cache(tmp_path: Path) -> None:
    def stopped() -> Iterator[EncodedText]:
        yield TEXTS[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached_tokens(tmp_path / "key", 10, stopped)
    assert list(tmp_path.iterdir()) == []
    assert contents(cached_tokens(tmp_path / "key", 10, lambda: TEXTS)) == [[1, 2, 3], [4], [5, 6]]


@pytest.mark.parametrize("damage", ["tokens.bin", "offsets.npy", "meta.json"])
def test_a_damaged_cache_is_made_anew(tmp_path: Path, damage: str) -> None:
    cached_tokens(tmp_path / "key", 10, lambda: TEXTS)
    file = tmp_path / "key" / damage
    file.write_bytes(file.read_bytes()[:-3])
    store = cached_tokens(tmp_path / "key", 10, lambda: TEXTS)
    assert contents(store) == [[1, 2, 3], [4], [5, 6]]


OFFSETS = [[0, 3, 4], [[0, 3, 4, 6]], [], 6, [1, 3, 4, 6], [0, 4, 3, 6], [0, -3, 4, 6]]


@pytest.mark.parametrize("offsets", [*OFFSETS, [0.0, 3.0, 4.0, 6.0]])
def test_offsets_that_no_cache_can_have_are_not_believed(tmp_path: Path, offsets: Any) -> None:
    cached_tokens(tmp_path / "key", 10, lambda: TEXTS)
    np.save(tmp_path / "key" / "offsets.npy", np.asarray(offsets))
    store = cached_tokens(tmp_path / "key", 10, lambda: TEXTS)
    assert contents(store) == [[1, 2, 3], [4], [5, 6]]


@pytest.mark.parametrize("meta", [[], None, {"dtype": "object"}, {"dtype": 3}, {"key": "other"}])
def test_the_description_of_another_cache_is_not_believed(tmp_path: Path, meta: Any) -> None:
    cached_tokens(tmp_path / "key", 10, lambda: TEXTS)
    file = tmp_path / "key" / "meta.json"
    changed = {**json.loads(file.read_text()), **meta} if isinstance(meta, dict) else meta
    file.write_text(json.dumps(changed))
    assert contents(cached_tokens(tmp_path / "key", 10, lambda: TEXTS)) == [[1, 2, 3], [4], [5, 6]]


def test_a_cache_under_the_name_of_another_is_not_believed(tmp_path: Path) -> None:
    cached_tokens(tmp_path / "other", 10, lambda: [([7], None)])
    (tmp_path / "other").rename(tmp_path / "key")
    assert contents(cached_tokens(tmp_path / "key", 10, lambda: TEXTS)) == [[1, 2, 3], [4], [5, 6]]


def test_several_at_a_time(tmp_path: Path) -> None:
    def make(_: int) -> list[list[int]]:
        return contents(cached_tokens(tmp_path / "key", 10, lambda: TEXTS * 50))

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(make, range(32)))
    assert all(result == results[0] for result in results)
    assert contents(cached_tokens(tmp_path / "key", 10, never)) == results[0]
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"data\.cache_dir"):
        cached_tokens(tmp_path / "file" / "key", 10, lambda: TEXTS)
