"""Masks: which tokens, how many, and the same ones whenever asked for."""

import numpy as np
import torch

from lightning_compress.data.dataloader import BatchRequest
from lightning_compress.data.masking import MaskedTokens, NextTokens

SPECIAL = [0, 1, 2, 3]
MASK = 3
mask_tokens = MaskedTokens(
    probability=0.15, mask_token_id=MASK, special_token_ids=SPECIAL, vocabulary=1000, seed=5
)


def batch(rows: list[int], length: int, padded: int) -> dict[str, torch.Tensor]:
    """Rows of ordinary tokens between two special ones, padded with 0."""
    ids = torch.zeros(len(rows), padded, dtype=torch.int64)
    for place, row in enumerate(rows):
        content = np.random.default_rng(row).integers(4, 1000, length - 2)
        ids[place, :length] = torch.tensor([1, *content, 2])
    mask = torch.zeros_like(ids)
    mask[:, :length] = 1
    return {"input_ids": ids, "attention_mask": mask, "example_id": torch.tensor(rows)}


def masked(rows: list[int], epoch: int | None, length: int = 20, padded: int = 24) -> torch.Tensor:
    made = batch(rows, length, padded)
    mask_tokens(made, BatchRequest(np.arange(len(rows)), epoch))
    return torch.stack([made["input_ids"], made["labels"]])


def test_rates_are_those_of_the_paper() -> None:
    before = batch(list(range(400)), 100, 100)["input_ids"]
    after, labels = masked(list(range(400)), 0, 100, 100)
    chosen = labels != -100
    ordinary = before > 3
    assert torch.equal(labels[chosen], before[chosen])
    assert torch.equal(after[~chosen], before[~chosen])
    assert not chosen[~ordinary].any(), "special tokens are never chosen"
    share = chosen.sum() / ordinary.sum()
    assert abs(share - 0.15) < 0.01
    put = after[chosen]
    assert abs((put == MASK).float().mean() - 0.8) < 0.02
    assert abs((put == before[chosen]).float().mean() - 0.1) < 0.02
    others = put[(put != MASK) & (put != before[chosen])]
    assert (others > 3).all(), "no special token is put in"
    assert len(others.unique()) > 200


def test_depends_on_example_and_epoch_alone() -> None:
    one = masked([7], 3)
    assert torch.equal(masked([7], 3), one)
    in_company = masked([2, 7, 9], 3, padded=40)
    assert torch.equal(in_company[:, 1:2, :24], one)
    assert not torch.equal(masked([7], 4), one)
    assert torch.equal(masked([7], None), masked([7], None))
    assert not torch.equal(masked([7], None), masked([7], 0))


def test_at_least_one_token_is_asked_for() -> None:
    _, labels = masked(list(range(200)), 0, length=3)
    assert ((labels != -100).sum(dim=1) == 1).all()


def test_nothing_to_mask() -> None:
    _, labels = masked([1], 0, length=2)
    assert (labels == -100).all()


def test_next_tokens_are_not_shifted_and_skip_padding() -> None:
    made = batch([1], 5, 8)
    made["input_ids"][0, 4] = 0  # the end, which is also what pads
    NextTokens()(made, BatchRequest(np.arange(1), None))
    assert made["labels"][0, :5].tolist() == made["input_ids"][0, :5].tolist()
    assert made["labels"][0, 5:].tolist() == [-100] * 3
