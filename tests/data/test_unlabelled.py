"""Training on texts without labels, alone and among labelled ones."""

import json
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.demos.boring_classes import BoringModel

from lightning_compress.data import TextClassificationDataModule, sources
from lightning_compress.data.dataloader import LengthBucketedBatches
from lightning_compress.data.dataset import fingerprint_of
from lightning_compress.data.local_files import read_rows
from lightning_compress.data.splits import first_id
from lightning_compress.errors import InputError

from .conftest import words

Build = Callable[..., TextClassificationDataModule]
Write = Callable[..., Path]

FIRST = first_id("unlabelled")
TEXTS = dict(enumerate(words(60)))
TEXTS |= {FIRST + row: text for row, text in enumerate(words(97)[60:])}
TEXTS |= {first_id("validation") + row: text for row, text in enumerate("ab")}


@pytest.fixture
def mixed(classification: Build, write_rows: Write) -> Build:
    """A data module on 60 rows with two classes and 37 without."""

    def build(**options: Any) -> TextClassificationDataModule:
        write_rows(words(97)[60:], ["never read"] * 37, "unsupervised.jsonl")
        data = classification(**options)
        data.setup("fit")
        return data

    return build


def labels_of(data: TextClassificationDataModule, loader: Any) -> dict[int, Any]:
    """The label of each example, whose tokens have to be those of its text."""
    found: dict[int, Any] = {}
    assert data.tokenizer is not None
    for batch in loader:
        for i, example in enumerate(batch["example_id"].tolist()):
            ids = batch["input_ids"][i][batch["attention_mask"][i] == 1].tolist()
            assert ids == data.tokenizer(TEXTS[example])["input_ids"]
            assert example not in found
            found[example] = batch["labels"][i].tolist()
    return found


def truth(examples: Any) -> dict[int, int]:
    return {e: -100 if e >= FIRST else int(e % 3 == 0) for e in examples}


@pytest.mark.parametrize("train_on", ["labelled", "unlabelled", "both"])
def test_every_epoch_holds_the_rows_that_are_asked_for(mixed: Build, train_on: str) -> None:
    data = mixed(train_on=train_on)
    assert data.train_on == train_on
    assert (data.num_labels, data.label_names) == (2, ["False", "True"])
    validation = labels_of(data, data.val_dataloader())
    assert validation == truth(validation)
    assert len(validation) == 6
    labelled = set(range(60)) - validation.keys()
    unlabelled = {FIRST + row for row in range(37)}
    wanted = {"labelled": labelled, "unlabelled": unlabelled, "both": labelled | unlabelled}
    loader = data.train_dataloader()
    for epoch in range(2):
        loader.order.set_epoch(epoch)
        assert labels_of(data, loader) == truth(wanted[train_on])


def test_both_kinds_meet_in_batches_of_like_length(mixed: Build) -> None:
    batches = list(mixed(train_on="both", batch_size=8).train_dataloader())
    kinds = [set((batch["labels"] == -100).tolist()) for batch in batches]
    assert kinds.count({True, False}) > len(batches) / 2
    assert len({batch["input_ids"].shape[1] for batch in batches}) > 1


@pytest.mark.parametrize("ranks", [2, 3])
def test_processes_share_both_kinds(mixed: Build, ranks: int) -> None:
    data = mixed(train_on="both")
    examples = data.examples("train")
    shares = [
        [
            batch
            for request in LengthBucketedBatches(
                examples.padded, batch_size=4, training=True, num_replicas=ranks, rank=rank
            )
            for batch in [examples[request]]
        ]
        for rank in range(ranks)
    ]
    assert len({len(share) for share in shares}) == 1
    alone = labels_of(data, data.train_dataloader())
    assert labels_of(data, chain(*shares)) == alone


def test_who_does_not_ask_trains_as_before(
    classification: Build, mixed: Build, tmp_path: Path
) -> None:
    before = classification()
    before.setup("fit")
    expected = list(before.train_dataloader())
    splits = {"train": "train.jsonl", "unlabelled": "unsupervised.jsonl"}
    (tmp_path / "unlabelled.csv").write_text("review\ngood\n")
    misfit = {**splits, "unlabelled": "unlabelled.csv"}
    for data in (mixed(), mixed(splits=splits), mixed(splits=misfit)):
        found = list(data.train_dataloader())
        assert len(found) == len(expected)
        for batch, other in zip(found, expected, strict=True):
            assert batch.keys() == other.keys()
            assert all(torch.equal(batch[name], other[name]) for name in batch)


@pytest.mark.parametrize("train_on", ["labelled", "both"])
def test_labels_of_unlabelled_texts_are_never_read(
    mixed: Build, monkeypatch: pytest.MonkeyPatch, train_on: str
) -> None:
    read: list[tuple[str, list[str]]] = []
    real = read_rows

    def watched(file: Path, form: Any, columns: list[str], **options: Any) -> Any:
        read.append((file.name, list(columns)))
        return real(file, form, columns, **options)

    monkeypatch.setattr(sources, "read_rows", watched)
    mixed(train_on=train_on)
    columns = [columns for name, columns in read if name == "unsupervised.jsonl"]
    assert columns == ([["text"]] if train_on == "both" else [])


@pytest.mark.parametrize(
    ("labels", "shape"), [([0.5, 1.5, 2.0, 3.5], (5,)), ([["a"], [], ["b", "a"], ["c"]], (5, 3))]
)
def test_numbers_that_are_missing_are_nan(
    classification: Build, write_rows: Write, labels: list[object], shape: tuple[int, ...]
) -> None:
    write_rows(words(4), labels, "train.jsonl")
    write_rows(words(4), labels, "valid.jsonl")
    path = str(write_rows(["a"], [None], "unlabelled.jsonl").parent)
    data = classification(path=path, train_on="both", batch_size=8)
    data.setup("fit")
    (batch,) = data.train_dataloader()
    alone = classification(path=path, batch_size=8)
    alone.setup("fit")
    by_id = {
        example: row
        for known in alone.train_dataloader()
        for example, row in zip(known["example_id"].tolist(), known["labels"], strict=True)
    }
    assert (batch["labels"].dtype, batch["labels"].shape) == (torch.float32, shape)
    for example, row in zip(batch["example_id"].tolist(), batch["labels"], strict=True):
        assert row.isnan().all() if example >= FIRST else torch.equal(row, by_id[example])


def test_pairs(classification: Build, tmp_path: Path) -> None:
    rows = [{"one": "good a", "two": w, "label": i % 2} for i, w in enumerate(words(10))]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "unlabelled.jsonl").write_text('{"two": "bad", "one": "b c"}')
    data = classification(path=str(tmp_path), text=["one", "two"], train_on="both")
    data.setup("fit")
    assert data.tokenizer is not None
    batch = data.examples("train").by_ids(np.array([FIRST]))
    expected = data.tokenizer("b c", "bad")
    length = len(expected["input_ids"])
    assert batch["input_ids"][0, :length].tolist() == expected["input_ids"]
    assert batch["token_type_ids"][0, :length].tolist() == expected["token_type_ids"]


def test_limits(mixed: Build) -> None:
    data = mixed(train_on="unlabelled", limits={"unlabelled": 5, "train": 20})
    assert sorted(labels_of(data, data.train_dataloader())) == [FIRST + row for row in range(5)]
    assert all(example < 20 for example in labels_of(data, data.val_dataloader()))


@pytest.mark.parametrize("train_on", ["unlabelled", "both"])
def test_without_such_a_split_training_alone_is_refused(
    classification: Build, train_on: str
) -> None:
    data = classification(train_on=train_on)
    data.setup("test")
    data.setup("validate")
    with pytest.raises(
        InputError, match=rf"data\.train_on is {train_on}.*data\.splits\.unlabelled"
    ):
        data.setup("fit")
    with pytest.raises(InputError, match=r"in the built-in corpus.*data\.splits\.unlabelled"):
        TextClassificationDataModule(train_on=train_on).setup("fit")  # type: ignore[arg-type]


def test_mistakes(classification: Build, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data\.train_on is 'unlabeled': .*unlabelled"):
        classification(train_on="unlabeled")
    (tmp_path / "unlabelled.jsonl").write_text('{"review": "a"}')
    classification().setup("fit")
    with pytest.raises(InputError, match=r"no column 'text'.*data\.splits\.unlabelled"):
        classification(train_on="both").setup("fit")
    (tmp_path / "unlabelled.jsonl").write_text('{"text": "a"}\n{"text": null}')
    with pytest.raises(InputError, match=r"unlabelled\.jsonl: row 2 has no text"):
        classification(train_on="both").setup("fit")


def test_labels_are_not_learned_from_unlabelled_texts(
    classification: Build, write_rows: Write, tmp_path: Path
) -> None:
    (tmp_path / "new.txt").write_text("good\n")
    path = str(write_rows(["a", "b"], [-1, -2], "unlabelled.jsonl").parent)
    data = classification(
        path=path, splits={"predict": "new.txt", "unlabelled": "unlabelled.jsonl"}
    )
    data.setup("predict")
    assert data.num_labels is None


@pytest.mark.parametrize("validation", [False, True])
def test_the_same_rows_in_other_tokens(
    mixed: Build, write_rows: Write, gpt2_tokenizer: str, validation: bool
) -> None:
    if validation:
        write_rows(["a", "b"], [False, True], "validation.jsonl")
    one = mixed(train_on="both", limits={"train": 50}, seed=3)
    other = one.retokenized(gpt2_tokenizer)
    assert type(other) is type(one)
    assert other.trainer is None
    assert other.hparams == {**one.hparams, "tokenizer": gpt2_tokenizer}
    other.setup("fit")
    for split, loader in (("train", one.train_dataloader()), ("validation", one.val_dataloader())):
        theirs = other.examples(split)  # type: ignore[arg-type]
        assert theirs.sequences.ids.tolist() == one.examples(split).sequences.ids.tolist()  # type: ignore[arg-type]
        batches = list(loader)
        again = [theirs.by_ids(batch["example_id"].numpy()) for batch in batches]
        for batch, found in zip(batches, again, strict=True):
            for name in ("example_id", "labels"):
                assert torch.equal(batch[name], found[name])
        labels_of(other, again)
    assert one.examples("train").fixed_inputs
    assert fingerprint_of([one.examples("train")]) != fingerprint_of([other.examples("train")])
    same = other.retokenized(str(one.tokenizer_name))
    same.setup("fit")
    assert fingerprint_of([one.examples("train")]) == fingerprint_of([same.examples("train")])


def test_data_from_the_command_line_in_other_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["lightning-compress"])
    arguments = [f"--data.path={tmp_path}", "--data.tokenizer=one", "--data.splits.train=x.csv"]
    cli = LightningCLI(
        BoringModel,
        TextClassificationDataModule,
        run=False,
        save_config_callback=None,
        seed_everything_default=False,
        args=[*arguments, "--trainer.logger=false", "--data.train_on=both"],
    )
    other = cli.datamodule.retokenized("other")
    assert (other.tokenizer_name, other.path, other.train_on) == ("other", str(tmp_path), "both")
    assert other.splits == {"train": "x.csv"}
