"""The data module for language models, from lines of text to blocks."""

from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_compress.data import LanguageModelingDataModule
from lightning_compress.data.splits import first_id
from lightning_compress.errors import InputError

from .conftest import words

Build = Callable[..., LanguageModelingDataModule]


def rows_of(batches: Any) -> dict[int, dict[str, list[int]]]:
    """Every example by its id, without padding."""
    found = {}
    for batch in batches:
        for i, example in enumerate(batch["example_id"].tolist()):
            kept = batch["attention_mask"][i] == 1
            found[example] = {
                name: batch[name][i][kept].tolist() for name in ("input_ids", "labels")
            }
            assert (batch["labels"][i][~kept] == -100).all()
    return found


def test_packed_blocks_hold_all_texts(language_modeling: Build) -> None:
    data = language_modeling()
    data.setup("test")
    assert (data.num_labels, data.label_names, data.problem_type) == (None, None, None)
    assert data.tokenizer is not None
    end = data.tokenizer.eos_token_id
    texts = ([*data.tokenizer(text)["input_ids"], end] for text in words(9))
    blocks = rows_of(data.test_dataloader())
    assert sorted(blocks) == [first_id("test") + i for i in range(len(blocks))]
    joined = chain(*(blocks[i]["input_ids"] for i in sorted(blocks)))
    assert list(joined) == list(chain(*texts))
    assert all(block["labels"] == block["input_ids"] for block in blocks.values())


def test_blocks_of_different_splits_have_different_ids(language_modeling: Build) -> None:
    data = language_modeling()
    data.setup("fit")
    train, validation = rows_of(data.train_dataloader()), rows_of(data.val_dataloader())
    assert min(train) == 0
    assert min(validation) == first_id("validation") > max(train)


def test_no_text_is_in_training_and_validation(language_modeling: Build) -> None:
    data = language_modeling(packing=False, max_length=20)
    data.setup("fit")
    train, validation = rows_of(data.train_dataloader()), rows_of(data.val_dataloader())
    assert len(validation) == 6
    assert sorted([*train, *validation]) == list(range(60))
    assert data.tokenizer is not None
    end = data.tokenizer.eos_token_id
    for row, example in {**train, **validation}.items():
        assert example["input_ids"] == [*data.tokenizer(words(60)[row])["input_ids"], end][:20]


@pytest.mark.parametrize("packing", [True, False])
def test_masked(language_modeling: Build, bert_tokenizer: str, packing: bool) -> None:
    data = language_modeling(objective="masked", tokenizer=bert_tokenizer, packing=packing)
    data.setup("fit")
    data.setup("test")
    tokenizer: Any = data.tokenizer
    for example in rows_of(data.train_dataloader()).values():
        ids, labels = example["input_ids"], example["labels"]
        assert len(ids) <= 12
        assert (ids[0], ids[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
        assert any(label != -100 for label in labels)
        assert not set(labels) & set(tokenizer.all_special_ids)
    before = [batch["input_ids"] for batch in data.test_dataloader()]
    again = [batch["input_ids"] for batch in data.test_dataloader()]
    assert all(map(torch.equal, before, again)), "evaluation always masks the same"
    originals = {
        example: [label if label != -100 else token for token, label in zip(*parts, strict=True)]
        for example, parts in (
            (i, (row["input_ids"], row["labels"]))
            for i, row in rows_of(data.test_dataloader()).items()
        )
    }
    if not packing:
        expected = [tokenizer(t, truncation=True, max_length=12)["input_ids"] for t in words(9)]
        assert [originals[i] for i in sorted(originals)] == expected


@pytest.mark.parametrize("workers", [0, 1])
def test_masks_are_drawn_anew_in_every_epoch(
    language_modeling: Build, bert_tokenizer: str, workers: int
) -> None:
    data = language_modeling(objective="masked", tokenizer=bert_tokenizer, num_workers=workers)
    data.setup("fit")
    loader = data.train_dataloader()
    epochs = []
    for epoch in (0, 1, 0):
        loader.order.set_epoch(epoch)
        epochs.append(rows_of(loader))
    assert epochs[0] == epochs[2]
    assert epochs[0].keys() == epochs[1].keys()
    assert sum(epochs[0][i] != epochs[1][i] for i in epochs[0]) > len(epochs[0]) / 2


def test_other_test_file(language_modeling: Build, tmp_path: Path) -> None:
    (tmp_path / "elsewhere.tokens").write_text(" = a = \n\nb\n")
    (tmp_path / "train.txt").write_text("a\nb\n")
    data = language_modeling(
        path=str(tmp_path), splits={"train": "train.txt", "test": "elsewhere.tokens"}
    )
    data.setup("test")
    assert len(rows_of(data.test_dataloader())) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask_probability": 0.0}, r"data\.mask_probability is 0\.0"),
        ({"text": ["a", "b"]}, "reads one column"),
        ({"max_length": 1}, r"data\.max_length is 1"),
    ],
)
def test_options_out_of_range(
    language_modeling: Build, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        language_modeling(**options)


def test_masked_needs_a_mask_token(language_modeling: Build) -> None:
    with pytest.raises(InputError, match="no mask token"):
        language_modeling(objective="masked").setup("fit")


def test_too_little_text(language_modeling: Build, tmp_path: Path, bert_tokenizer: str) -> None:
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(InputError, match="has no rows"):
        language_modeling(path=str(tmp_path / "empty.txt")).setup("fit")
    (tmp_path / "one.txt").write_text("a\n")
    with pytest.raises(InputError, match="cannot be divided"):
        language_modeling(path=str(tmp_path / "one.txt")).setup("fit")


@pytest.mark.parametrize("objective", ["causal", "masked"])
def test_only_masked_inputs_change_from_epoch_to_epoch(
    language_modeling: Build, bert_tokenizer: str, objective: str
) -> None:
    data = language_modeling(objective=objective, tokenizer=bert_tokenizer)
    data.setup("fit")
    assert data.examples("train").fixed_inputs == (objective == "causal")


def test_texts_in_other_tokens(language_modeling: Build, bert_tokenizer: str) -> None:
    with pytest.raises(InputError, match=r"data\.packing: blocks of another tokenizer's"):
        language_modeling().retokenized(bert_tokenizer)
    one = language_modeling(packing=False)
    other = one.retokenized(bert_tokenizer)
    for data in (one, other):
        data.setup("fit")
    for split in ("train", "validation"):
        ids = [data.examples(split).sequences.ids.tolist() for data in (one, other)]
        assert ids[0] == ids[1]


def test_a_language_model_has_no_unlabelled_split(language_modeling: Build) -> None:
    with pytest.raises(InputError, match=r"data\.splits\.unlabelled: .* data\.splits\.train"):
        language_modeling(splits={"train": "train.txt", "unlabelled": "test.txt"})


def test_a_file_of_unlabelled_texts_is_left_alone(language_modeling: Build, tmp_path: Path) -> None:
    found = []
    for cache in ("without", "with"):  # each reads the files itself
        data = language_modeling(cache_dir=str(tmp_path / "caches" / cache))
        data.setup("fit")
        found.append([rows_of(data.train_dataloader()), rows_of(data.val_dataloader())])
        (tmp_path / "unsupervised.csv").write_text("review\na\n")
    assert found[0] == found[1]
