"""Batches hold the examples' own tokens, padded no further than need be."""

from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_compress.data.batching import BatchRequest
from lightning_compress.data.collation import Padding, TokenBatches
from lightning_compress.data.stored_texts import StoredTexts
from lightning_compress.data.token_store import cached_tokens

TEXTS = [[1, 2, 3], [4] * 9, [5] * 20, [6]]


def build(folder: Path, padding: Padding, paired: bool = False) -> TokenBatches:
    parts = [[0] * (len(t) - 1) + [1] if paired else None for t in TEXTS]
    store = cached_tokens(folder / str(paired), 10, lambda: zip(TEXTS, parts, strict=True))
    rows = np.arange(4)
    texts = StoredTexts(store, rows, rows + 10, max_length=18)
    return TokenBatches(texts, pad_token_id=9, max_length=18, padding=padding, add_targets=None)


@pytest.mark.parametrize(
    ("indices", "padding", "length"),
    [
        ([0, 3], "longest", 8),
        ([0, 1], "longest", 16),
        ([2, 0], "longest", 18),
        ([3], "max_length", 18),
    ],
)
def test_padding(tmp_path: Path, indices: list[int], padding: Padding, length: int) -> None:
    batch = build(tmp_path, padding)[BatchRequest(np.array(indices), 0)]
    assert set(batch) == {"input_ids", "attention_mask", "example_id"}
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())
    assert batch["example_id"].tolist() == [index + 10 for index in indices]
    for row, index in enumerate(indices):
        text = TEXTS[index][:18]
        rest = length - len(text)
        assert batch["input_ids"][row].tolist() == text + [9] * rest
        assert batch["attention_mask"][row].tolist() == [1] * len(text) + [0] * rest


def test_segments_of_pairs(tmp_path: Path) -> None:
    batch = build(tmp_path, "longest", paired=True)[BatchRequest(np.array([0, 3]), None)]
    assert batch["token_type_ids"].tolist() == [[0, 0, 1, *[0] * 5], [1, *[0] * 7]]
