"""Pairs of texts, from files to batches that keep them together."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_compress.data import SentencePairDataModule
from lightning_compress.data.dataloader import BatchRequest
from lightning_compress.data.sentence_pairs import pair_of
from lightning_compress.errors import InputError

Build = Callable[..., SentencePairDataModule]

ROWS = [
    {"sentence1": "good " * (1 + row % 9), "sentence2": "bad " * (1 + row % 4), "score": row % 6}
    for row in range(30)
]


@pytest.fixture
def pairs(tmp_path: Path, bert_tokenizer: str) -> Build:
    """A data module on 30 pairs for training and 6 for the test, or on what is given."""

    def build(train: Any = ROWS, test: Any = ROWS[:6], **options: Any) -> SentencePairDataModule:
        for name, rows in (("train", train), ("test", test)):
            (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        defaults: dict[str, Any] = {
            "path": str(tmp_path),
            "tokenizer": bert_tokenizer,
            "max_length": 16,
            "batch_size": 4,
            "score_range": [0, 5],
            "cache_dir": str(tmp_path / "cache"),
        }
        return SentencePairDataModule(**{**defaults, **options})

    return build


def test_both_texts_of_a_pair_are_in_one_batch_with_its_score(pairs: Build) -> None:
    data = pairs()
    data.setup("fit")
    seen = set()
    for loader in (data.train_dataloader(), data.val_dataloader()):
        for batch in loader:
            numbers, scores = batch["labels"].unbind(1)
            assert len(numbers) <= 8
            rows = numbers.long() // 2
            assert torch.equal(rows[0::2], rows[1::2])
            assert numbers.long().remainder(2).tolist() == [0, 1] * (len(numbers) // 2)
            for place, number in enumerate(numbers.long().tolist()):
                row, side = divmod(number, 2)
                text = ROWS[row]["sentence2" if side else "sentence1"]
                length = int(batch["attention_mask"][place].sum())
                assert length == 2 + len(str(text).split())
                assert scores[place] == pytest.approx(int(str(ROWS[row]["score"])) / 5)
                assert pair_of(int(batch["example_id"][place])) == (row, side)
                seen.add(number)
    assert seen == set(range(60))


def test_examples_are_found_by_their_ids_one_by_one(pairs: Build) -> None:
    data = pairs()
    data.setup("test")
    texts = data.examples("test")
    whole = texts[BatchRequest(np.arange(6), None)]
    alone = texts.by_ids(whole["example_id"][[5, 2]].numpy())
    for place, other in enumerate((5, 2)):
        length = int(alone["attention_mask"][place].sum())
        assert torch.equal(alone["input_ids"][place, :length], whole["input_ids"][other, :length])
        assert torch.equal(alone["labels"][place], whole["labels"][other])


def test_pairs_without_a_score_have_nan(pairs: Build) -> None:
    rows = [{"sentence1": "a", "sentence2": "b"}] * 10
    data = pairs(rows, rows, score=None)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch["labels"][:, 1].isnan().all()
    assert not batch["labels"][:, 0].isnan().any()
    assert data.problem_type == "single_label_classification"


def test_single_texts_are_for_predictions(pairs: Build) -> None:
    data = pairs(second=None)
    data.setup("predict")
    ids = torch.cat([batch["example_id"] for batch in data.predict_dataloader()])
    assert sorted(pair_of(int(one)) for one in ids) == [(row, 0) for row in range(6)]
    with pytest.raises(InputError, match=r"data\.second: there is one column of texts"):
        pairs(second=None).setup("fit")


@pytest.mark.parametrize(
    ("options", "rows", "message"),
    [
        ({"score_range": [0, 1]}, ROWS, r"row 3 of data\.score is 2, and data\.score_range is \[0"),
        ({"score_range": [5, 0]}, ROWS, r"data\.score_range is \[5, 0\]: give the lowest and"),
        ({"score_range": [0, 1, 2]}, ROWS, r"data\.score_range is \[0, 1, 2\]"),
        ({"second": "sentence1"}, ROWS, r"data\.text is \['sentence1', 'sentence1'\]"),
        ({"second": "other"}, ROWS, r"data\.second: .* has no column 'other'"),
        ({}, [{**ROWS[0], "sentence2": None}, *ROWS], "row 1 has no text in column sentence2"),
        ({}, [{**one, "score": "much"} for one in ROWS], r"data\.score.*much"),
        ({}, [*ROWS, {**ROWS[0], "score": None}], "row 31"),
    ],
)
def test_what_is_wrong_is_told_before_training(
    pairs: Build, options: Any, rows: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        pairs(rows, **options).setup("fit")


def test_scores_of_the_test_split_are_looked_at_before_training(pairs: Build) -> None:
    with pytest.raises(InputError, match=r"test\.jsonl: row 1 of data\.score is 9"):
        pairs(test=[{**ROWS[0], "score": 9}]).setup("fit")
