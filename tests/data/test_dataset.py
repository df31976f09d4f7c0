"""Batches hold the examples' own tokens, padded no further than need be."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_compress.data.dataloader import BatchRequest
from lightning_compress.data.dataset import TokenBatches, fingerprint_of
from lightning_compress.data.sequences import JoinedTexts, StoredTexts
from lightning_compress.data.token_cache import cached_tokens
from lightning_compress.errors import InputError

TEXTS = [[1, 2, 3], [4] * 9, [5] * 20, [6]]


def build(folder: Path, paired: bool = False) -> TokenBatches:
    parts = [[0] * (len(t) - 1) + [1] if paired else None for t in TEXTS]
    store = cached_tokens(folder / str(paired), 10, lambda: zip(TEXTS, parts, strict=True))
    rows = np.arange(4)
    texts = StoredTexts(store, rows, rows + 10, max_length=18)
    return TokenBatches(texts, pad_token_id=9, max_length=18, add_targets=None)


@pytest.mark.parametrize(
    ("indices", "length"),
    [
        ([0, 3], 8),
        ([0, 1], 16),
        ([2, 0], 18),
    ],
)
def test_padding(tmp_path: Path, indices: list[int], length: int) -> None:
    batch = build(tmp_path)[BatchRequest(np.array(indices), 0)]
    assert set(batch) == {"input_ids", "attention_mask", "example_id"}
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())
    assert batch["example_id"].tolist() == [index + 10 for index in indices]
    for row, index in enumerate(indices):
        text = TEXTS[index][:18]
        rest = length - len(text)
        assert batch["input_ids"][row].tolist() == text + [9] * rest
        assert batch["attention_mask"][row].tolist() == [1] * len(text) + [0] * rest


def test_segments_of_pairs(tmp_path: Path) -> None:
    batch = build(tmp_path, paired=True)[BatchRequest(np.array([0, 3]), None)]
    assert batch["token_type_ids"].tolist() == [[0, 0, 1, *[0] * 5], [1, *[0] * 7]]


class Listed:
    """Examples as lists."""

    def __init__(
        self,
        ids: Sequence[int],
        tokens: Sequence[Sequence[int]],
        segments: Sequence[Sequence[int]] | None = None,
        dtype: type = np.int64,
    ) -> None:
        self.ids = np.array(ids)
        self.lengths = np.array([len(text) for text in tokens])
        self.together = 1
        self._tokens: list[Any] = [np.array(text, dtype=dtype) for text in tokens]
        self._segments = segments

    def tokens(self, index: int) -> Any:
        return self._tokens[index]

    def segments(self, index: int) -> Any:
        return None if self._segments is None else self._segments[index]

    def batches(self) -> TokenBatches:
        return TokenBatches(self, pad_token_id=0, max_length=18, add_targets=None)


def test_batches_by_ids_are_those_by_position() -> None:
    ids = [7, 2**42, 3, 2**40 + 1]
    batches = Listed(ids, [text[:18] for text in TEXTS]).batches()
    for positions in ([3, 0], [2], [0, 1, 2, 3], [1, 1]):
        found = batches.by_ids(np.array([ids[position] for position in positions]))
        expected = batches[BatchRequest(np.array(positions), None)]
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in found)
    for unknown in (0, 5, 2**43):
        with pytest.raises(InputError, match=rf"no example {unknown} \(1 of 2 are not there\)"):
            batches.by_ids(np.array([3, unknown]))


def test_joined_texts_are_all_texts_one_after_another() -> None:
    parts = [Listed([5, 6], TEXTS[:2]), Listed([9], TEXTS[2:3]), Listed([2], TEXTS[3:])]
    joined = JoinedTexts(parts)
    assert joined.ids.tolist() == [5, 6, 9, 2]
    assert joined.lengths.tolist() == [len(text) for text in TEXTS]
    assert [joined.tokens(index).tolist() for index in range(4)] == TEXTS
    assert joined.segments(3) is None
    paired = JoinedTexts([Listed([0], [[1, 2]], [[0, 1]]), Listed([1], [[3]], [[1]])])
    assert [paired.segments(index) for index in range(2)] == [[0, 1], [1]]


def test_the_fingerprint_tells_every_difference() -> None:
    ids, tokens, segments = [4, 5], [[1, 2, 3], [4]], [[0, 0, 1], [1]]
    same = {
        fingerprint_of([Listed(ids, tokens, segments, dtype).batches()])
        for dtype in (np.int64, np.uint16)
    }
    different = {
        fingerprint_of([Listed(*other).batches()])
        for other in (
            (ids, tokens),
            ([4, 6], tokens, segments),
            ([5, 4], tokens, segments),  # the ids the other way round, not the order
            (ids, [[1, 2, 4], [4]], segments),
            (ids, [[1, 2], [3, 4]], [[0, 0], [1, 1]]),
            (ids, tokens, [[0, 1, 1], [1]]),
            (ids[:1], tokens[:1], segments[:1]),
        )
    }
    assert len(same) == 1
    assert len(different) == 7
    assert not same & different
    parts = [
        Listed([5], tokens[1:], segments[1:]).batches(),
        Listed([4], tokens[:1], segments[:1]).batches(),
    ]
    assert {fingerprint_of(parts)} == same, "however they are split"
