"""One file of one's own: divided for training, whole for an evaluation; no test split at all."""

from collections.abc import Callable
from pathlib import Path

import lightning as L
import numpy as np
import pytest

from lightning_compress.data import TextClassificationDataModule
from lightning_compress.data.splits import rows_of
from lightning_compress.errors import InputError

from .conftest import words

Build = Callable[..., TextClassificationDataModule]


def ids(loader: object) -> set[int]:
    return {int(one) for batch in loader for one in batch["example_id"]}  # type: ignore[attr-defined]


def test_a_single_file_is_divided_in_three(
    classification: Build, write_rows: Callable[..., Path]
) -> None:
    path = str(write_rows(words(50), [i % 2 for i in range(50)], "mine.jsonl"))
    data = classification(path=path)
    data.trainer = L.Trainer(logger=False, accelerator="cpu", enable_checkpointing=False)
    for stage in ("fit", "test"):
        data.setup(stage)
    loaders = data.train_dataloader(), data.val_dataloader(), data.test_dataloader()
    train, validation, test = map(ids, loaders)
    assert train | validation | test == set(range(50))
    assert not train & validation | train & test | validation & test
    assert (len(validation), len(test)) == (4, 4)
    labels = [label for batch in data.test_dataloader() for label in batch["labels"].tolist()]
    assert sum(labels) == 2  # every class gives its share
    assert data.has_test
    data.setup("predict")
    assert ids(data.predict_dataloader()) == set(range(50))


def test_without_training_the_whole_file_is_the_test_split(
    classification: Build, write_rows: Callable[..., Path]
) -> None:
    data = classification(path=str(write_rows(words(9), [i % 2 for i in range(9)], "mine.jsonl")))
    data.setup("test")
    assert ids(data.test_dataloader()) == set(range(9))


def test_a_file_that_is_named_for_training_has_no_test_rows(
    classification: Build, write_rows: Callable[..., Path]
) -> None:
    file = write_rows(words(9), [i % 2 for i in range(9)], "mine.jsonl")
    data = classification(path=str(file.parent), splits={"train": file.name})
    assert not data.has_test
    with pytest.raises(InputError, match=r"no test split .*data\.splits\.test"):
        data.setup("test")


@pytest.mark.parametrize("rows", [3, 4, 10, 1000])
def test_shares_are_disjoint_whatever_the_number_of_rows(rows: int) -> None:
    parts = [
        rows_of(split, rows, fraction=0.1, seed=3, classes=None, with_test=True)
        for split in ("train", "validation", "test")
    ]
    assert sorted(np.concatenate(parts)) == list(range(rows))
    assert all(len(part) for part in parts)


@pytest.mark.parametrize(
    "content", ["a good film,1\na bad plot,0\n", "good,1\nbad,0\n", "a b c,pos\nd,neg\n"]
)
def test_a_file_without_a_header_is_recognised(
    classification: Build, tmp_path: Path, content: str
) -> None:
    (tmp_path / "mine.csv").write_text(content)
    with pytest.raises(InputError, match=r"mine\.csv seems to be a row .* text,label"):
        classification(path=str(tmp_path / "mine.csv")).setup("fit")
