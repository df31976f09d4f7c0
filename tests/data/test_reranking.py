"""Queries and documents with a relevance, from files to batches and splits."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from lightning_compress.data import RerankingDataModule
from lightning_compress.data.queries import require_ranking
from lightning_compress.data.splits import rows_of
from lightning_compress.errors import InputError

from .conftest import LETTERS

Build = Callable[..., RerankingDataModule]


def row(query: int, document: int, label: Any, **more: Any) -> dict[str, Any]:
    return {"query": f"good {LETTERS[query]}", "document": f"bad {LETTERS[document]} bad",
            "label": label, **more}  # fmt: skip


# 20 queries with 4 documents each, those of a query far apart.
ROWS = [row(query, document, int(document == query % 4)) for document in range(4)
        for query in range(20)]  # fmt: skip


@pytest.fixture
def paired(tmp_path: Path, bert_tokenizer: str) -> Build:
    """A data module on 20 queries for training and 5 for the test, or on what is given."""

    def build(train: Any = ROWS, test: Any = ROWS[::4], **options: Any) -> RerankingDataModule:
        for name, rows in (("train", train), ("test", test)):
            (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        defaults: dict[str, Any] = {
            "path": str(tmp_path),
            "tokenizer": bert_tokenizer,
            "max_length": 20,
            "batch_size": 3,
            "cache_dir": str(tmp_path / "cache"),
        }
        return RerankingDataModule(**{**defaults, **options})

    return build


def examples(loader: Any) -> list[tuple[int, int, float, list[int], list[int]]]:
    """The row, its query, relevance, tokens and segments of all examples."""
    return [
        (int(batch["example_id"][place]) % 2**40, *batch["labels"][place].tolist(),
         batch["input_ids"][place][kept].tolist(), batch["token_type_ids"][place][kept].tolist())
        for batch in loader
        for place, kept in enumerate(batch["attention_mask"].bool())
    ]  # fmt: skip


def test_rows_are_pairs_with_query_and_relevance(paired: Build, bert_tokenizer: str) -> None:
    data = paired()
    data.setup("fit")
    data.setup("test")
    tokenizer = AutoTokenizer.from_pretrained(bert_tokenizer)
    found = examples(data.train_dataloader()) + examples(data.val_dataloader())
    assert sorted(one[0] for one in found) == list(range(80))
    for place, query, relevance, tokens, segments in found:
        expected = tokenizer(ROWS[place]["query"], ROWS[place]["document"])
        assert (tokens, segments) == (expected["input_ids"], expected["token_type_ids"])
        assert (query, relevance) == (place % 20, ROWS[place]["label"])
        assert data.query_of(place) == ROWS[place]["query"]
    batch = next(iter(data.test_dataloader()))
    assert batch["labels"].dtype == torch.float32
    assert data.num_labels == 1
    (share,) = data.label_frequencies or []
    assert share == pytest.approx(np.mean([ROWS[place]["label"] for place, *_ in found[:-8]]))


@pytest.mark.parametrize("single_file", [False, True])
def test_splits_share_no_query(paired: Build, tmp_path: Path, single_file: bool) -> None:
    path = str(tmp_path / "train.jsonl") if single_file else str(tmp_path)
    data = paired(path=path, validation_fraction=0.2)
    parts = []
    for split in ("train", "validation", "test") if single_file else ("train", "validation"):
        rows = rows_of(
            split,
            80, fraction=0.2, seed=0, groups=np.arange(80) % 20, with_test=single_file,
        )  # fmt: skip
        parts.append(rows)
        assert (np.bincount(rows % 20, minlength=20) % 4 == 0).all()  # none or all documents
    assert sorted(np.concatenate(parts)) == list(range(80))
    assert len(parts[1]) == (12 if single_file else 16)
    data.setup("fit")
    for loader, rows in ((data.train_dataloader(), parts[0]), (data.val_dataloader(), parts[1])):
        assert sorted(one[0] for one in examples(loader)) == rows.tolist()


def test_a_column_may_tell_the_query(paired: Build) -> None:
    numbered = [{**one, "topic": f"t{place % 20 // 2}"} for place, one in enumerate(ROWS)]
    data = paired(train=numbered, test=numbered, query_id="topic")
    data.setup("test")
    found = examples(data.test_dataloader())
    assert {(place, query) for place, query, *_ in found} == {(p, p % 20 // 2) for p in range(80)}
    assert data.query_of(2**41 + 5) == "t2"


def test_grades_are_divided_by_the_highest(paired: Build) -> None:
    graded = [{**one, "label": place % 4} for place, one in enumerate(ROWS[:20] * 2)]
    graded = [{**one, "query": "good"} for one in graded]
    data = paired(test=graded, highest_relevance=3)
    data.setup("test")
    found = {place: relevance for place, _, relevance, *_ in examples(data.test_dataloader())}
    assert found == pytest.approx({place: place % 4 / 3 for place in range(40)})


def test_predict_needs_no_labels(paired: Build) -> None:
    bare = [{"query": one["query"], "document": one["document"]} for one in ROWS[:6]]
    data = paired(test=bare)
    data.setup("predict")
    batches = list(data.predict_dataloader())
    assert sum(len(batch["input_ids"]) for batch in batches) == 6
    assert all("labels" not in batch for batch in batches)
    assert data.query_of(2**41) == "good a"


def test_other_tokens_leave_the_rows_as_they_are(paired: Build, gpt2_tokenizer: str) -> None:
    data = paired()
    data.setup("fit")
    other = data.retokenized(gpt2_tokenizer)
    other.setup("fit")
    for loaders in zip(
        (data.train_dataloader(), data.val_dataloader()),
        (other.train_dataloader(), other.val_dataloader()),
        strict=True,
    ):
        one, two = (
            sorted((int(i), *label) for batch in loader for i, label in
                   zip(batch["example_id"], batch["labels"].tolist(), strict=True))
            for loader in loaders
        )  # fmt: skip
        assert one == two


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([row(0, 0, 3)], r"row 5 has the relevance 3, and the highest is 1: set data\.highest_rel"),
        ([row(0, 0, -1)], "row 5 has the relevance -1, and 0 is the least"),
        ([row(0, 0, None)], "1 of 5 rows have no label, the first of them row 5"),
        ([{**row(0, 0, 1), "query": None}], "row 5 has nothing in column query"),
        ([{**row(0, 0, 1), "query": ""}], "row 5 has nothing in column query"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("split", ["train", "test"])
def test_wrong_rows_are_named_before_training(
    paired: Build, wrong: Any, message: str, split: str
) -> None:
    start = [row(0, 0, 1), row(0, 1, 0), row(1, 0, 1), row(1, 1, 0)]
    with pytest.raises(InputError, match=message):
        paired(**{split: start + wrong}).setup("fit")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row(0, 0, 0), row(0, 1, 0)], r"test\.jsonl: no document is relevant to its query"),
        ([row(0, 0, 1), row(1, 1, 0)],
         r"no query has documents of different relevance \(2 rows of 2 queries\).*data\.query_id"),
    ],
)  # fmt: skip
def test_a_test_without_anything_to_rank_is_refused_before_training(
    paired: Build, rows: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        paired(test=rows).setup("fit")


def test_training_needs_documents_of_both_kinds_and_two_queries(paired: Build) -> None:
    with pytest.raises(InputError, match=r"every data\.label is 1, so there is nothing to learn"):
        paired(train=[row(0, 0, 1), row(1, 0, 1)]).setup("fit")
    with pytest.raises(InputError, match=r"all 2 training rows belong together.*more queries"):
        paired(train=[row(0, 0, 1), row(0, 1, 0)]).setup("fit")


@pytest.mark.parametrize("label", ["high", [1, 0]])
def test_a_relevance_is_a_number(paired: Build, label: Any) -> None:
    with pytest.raises(InputError, match="the relevance of a document is one number"):
        paired(train=[row(0, 0, label), row(1, 0, label)]).setup("fit")


def test_queries_that_say_nothing_are_counted() -> None:
    queries = np.array([7, 7, 9, 9, 2, 4, 4])
    relevance = np.array([1, 0, 0, 0, 1, 0.5, 0.5], dtype=np.float32)
    told = require_ranking(queries, relevance, "here")
    assert told == (
        "here: of 4 queries 1 have no relevant document and are not counted, "
        "2 are right in any order."
    )
    assert require_ranking(queries[:2], relevance[:2], "here") == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"document": "query"}, r"data\.query and data\.document are both 'query'"),
        ({"highest_relevance": 0}, r"data\.highest_relevance must be a number"),
        ({"query_id": "topic"}, r"data\.query_id: .* has no column 'topic'"),
        ({"document": "passage"}, r"data\.document: .* has no column 'passage'"),
    ],
)
def test_options_are_checked(paired: Build, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        paired(**options).setup("fit")
