"""Blocks hold every token of the joined texts, once and in order."""

from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from lightning_compress.data.sequences import PackedBlocks, StoredTexts
from lightning_compress.data.token_cache import TokenStore, cached_tokens

RANDOM = np.random.default_rng(0)
TEXTS = [RANDOM.integers(0, 1000, size=length).tolist() for length in (3, 1, 17, 5, 40, 2)]


@pytest.fixture
def store(tmp_path: Path) -> TokenStore:
    return cached_tokens(tmp_path / "key", 1000, lambda: [(text, None) for text in TEXTS])


@pytest.mark.parametrize("block", [1, 2, 5, 8, 16, 67, 68, 100])
@pytest.mark.parametrize("rows", [[0, 1, 2, 3, 4, 5], [1, 3, 4], [2]])
def test_no_token_is_lost(store: TokenStore, block: int, rows: list[int]) -> None:
    blocks = PackedBlocks(store, np.array(rows), first_id=100, block=block)
    found = [blocks.tokens(i).tolist() for i in range(len(blocks.ids))]
    assert list(chain(*found)) == list(chain(*(TEXTS[row] for row in rows)))
    assert [len(part) for part in found] == blocks.lengths.tolist()
    assert all(len(part) == block for part in found[:-1])
    assert blocks.ids.tolist() == list(range(100, 100 + len(found)))


def test_frame_counts_for_the_length(store: TokenStore) -> None:
    blocks = PackedBlocks(store, np.arange(6), first_id=0, block=10, prefix=(7, 8), suffix=(9,))
    found = [blocks.tokens(i).tolist() for i in range(len(blocks.ids))]
    assert all(part[:2] == [7, 8] and part[-1] == 9 for part in found)
    assert list(chain(*(part[2:-1] for part in found))) == list(chain(*TEXTS))
    assert [len(part) for part in found] == blocks.lengths.tolist()
    assert blocks.lengths.max() == 10


def test_a_last_block_too_short_to_ask_anything_is_left_out(store: TokenStore) -> None:
    total = sum(map(len, TEXTS))
    blocks = PackedBlocks(store, np.arange(6), first_id=0, block=total - 1, shortest=2)
    assert blocks.lengths.tolist() == [total - 1]


def test_stored_texts_are_cut_and_framed(store: TokenStore) -> None:
    rows = np.array([4, 1])
    texts = StoredTexts(store, rows, rows + 50, max_length=6, prefix=(7,), suffix=(9,))
    assert texts.tokens(0).tolist() == [7, *TEXTS[4][:4], 9]
    assert texts.tokens(1).tolist() == [7, *TEXTS[1], 9]
    assert texts.lengths.tolist() == [6, 3]
    assert texts.ids.tolist() == [54, 51]
