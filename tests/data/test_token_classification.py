"""The data module of words and tags, from files to batches."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from lightning_compress.data import TokenClassificationDataModule
from lightning_compress.data.labels import KnownLabels
from lightning_compress.data.splits import first_id
from lightning_compress.errors import InputError
from lightning_compress.types import IGNORE_INDEX

Build = Callable[..., TokenClassificationDataModule]
Sentence = list[tuple[str, str]]

SENTENCES: list[Sentence] = [
    [("good", "O"), ("abc", "B-x"), ("de", "I-x"), ("bad", "O")],
    [("f", "B-y"), ("\u200d", "O"), ("good", "O")],
    [("ab", "O"), ("cdef", "B-x")],
    [("bad", "O"), ("bad", "O"), ("xyz", "B-y"), ("w", "I-y"), ("good", "O")],
] * 5


@pytest.fixture
def tagged(tmp_path: Path, bert_tokenizer: str) -> Build:
    """A data module on 20 training and 8 test sentences in CoNLL files, or on what is given."""

    def build(**options: Any) -> TokenClassificationDataModule:
        if "path" not in options:
            write_conll(tmp_path / "train.conll", SENTENCES)
            write_conll(tmp_path / "test.conll", SENTENCES[:8])
        defaults: dict[str, Any] = {
            "path": str(tmp_path),
            "tokenizer": bert_tokenizer,
            "max_length": 32,
            "batch_size": 3,
            "cache_dir": str(tmp_path / "cache"),
        }
        return TokenClassificationDataModule(**{**defaults, **options})

    return build


def write_conll(file: Path, sentences: list[Sentence]) -> None:
    texts = ["".join(f"{word}\t{tag}\n" for word, tag in sentence) for sentence in sentences]
    file.write_text("\n".join(texts), encoding="utf-8")


def write_jsonl(file: Path, sentences: list[Sentence], tags: Callable[[str], object] = str) -> None:
    rows = [
        {"words": [word for word, _ in one], "ner_tags": [tags(tag) for _, tag in one]}
        for one in sentences
    ]
    file.write_text("\n".join(map(json.dumps, rows)))


def tags_of(data: TokenClassificationDataModule, batch: dict[str, torch.Tensor]) -> list[list[str]]:
    """The tags in a batch, after a look at where they stand."""
    assert data.tokenizer is not None
    assert data.label_names is not None
    found = []
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        tokens = data.tokenizer.convert_ids_to_tokens(ids.tolist())
        at = (labels != IGNORE_INDEX).nonzero()[:, 0].tolist()
        assert not any(tokens[place].startswith("##") for place in at)
        first = [t not in ("[CLS]", "[SEP]", "[PAD]") and not t.startswith("##") for t in tokens]
        assert [place for place, is_first in enumerate(first) if is_first] == at
        found.append([data.label_names[labels[place]] for place in at])
    return found


def test_each_tag_stands_at_the_first_token_of_its_word(tagged: Build) -> None:
    data = tagged()
    data.setup("fit")
    assert data.label_names == ["B-x", "B-y", "I-x", "I-y", "O"]
    assert (data.num_labels, data.problem_type) == (5, None)
    tags = [tag for one in SENTENCES for _, tag in one]
    frequencies = [tags.count(name) / len(tags) for name in data.label_names]
    assert data.label_frequencies == pytest.approx(frequencies)
    found: dict[int, list[str]] = {}
    for loader in (data.train_dataloader(), data.val_dataloader()):
        for batch in loader:
            assert batch["labels"].shape == batch["input_ids"].shape
            found |= dict(zip(batch["example_id"].tolist(), tags_of(data, batch), strict=True))
    assert found == {row: [tag for _, tag in one] for row, one in enumerate(SENTENCES)}


def test_lists_in_json_lines_are_read_alike(tagged: Build, tmp_path: Path) -> None:
    tagged().setup("fit")
    numbers = ["O", "B-x", "I-x", "B-y", "I-y"]
    for tags in (str, numbers.index):
        folder = tmp_path / str(tags)
        folder.mkdir()
        write_jsonl(folder / "train.jsonl", SENTENCES, tags)
        data = tagged(path=str(folder), words="words", tags="ner_tags")
        data.known_labels = None if tags is str else KnownLabels(names=tuple(numbers))
        data.setup("fit")
        rows = [row for batch in data.train_dataloader() for row in tags_of(data, batch)]
        found = [tag for row in rows for tag in row]
        assert set(found) <= {tag for one in SENTENCES for _, tag in one}
        assert found.count("B-x") >= 8


def test_classes_that_a_dataset_declares_are_its_names(
    tagged: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["O", "B-x", "I-x", "B-y", "I-y", "B-unseen"]
    features = datasets.Features(
        {"tokens": datasets.List(datasets.Value("string")),
         "ner_tags": datasets.List(datasets.ClassLabel(names=names))}
    )  # fmt: skip
    rows = {
        "tokens": [[word for word, _ in one] for one in SENTENCES],
        "ner_tags": [[tag for _, tag in one] for one in SENTENCES],
    }
    loaded = datasets.DatasetDict({"train": datasets.Dataset.from_dict(rows, features=features)})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: loaded)
    data = tagged(path="someone/tagged", tags="ner_tags")
    data.setup("fit")
    assert data.label_names == names
    batch = next(iter(data.train_dataloader()))
    rows_found = dict(zip(batch["example_id"].tolist(), tags_of(data, batch), strict=True))
    assert all(tags == [tag for _, tag in SENTENCES[row]] for row, tags in rows_found.items())


def test_a_trained_model_keeps_the_order_of_its_tags(tagged: Build) -> None:
    names = ("O", "I-y", "B-y", "I-x", "B-x", "B-z")
    data = tagged()
    data.known_labels = KnownLabels(names=names)
    data.setup("test")
    assert data.label_names == list(names)
    for batch in data.test_dataloader():
        rows = (batch["example_id"] - first_id("test")).tolist()
        assert tags_of(data, batch) == [[tag for _, tag in SENTENCES[row]] for row in rows]


def test_words_beyond_the_length_are_counted_and_left_out(
    tagged: Build, caplog: pytest.LogCaptureFixture
) -> None:
    data = tagged(max_length=6)  # four tokens of a sentence
    with caplog.at_level("INFO"):
        data.setup("test")
    # good a ##b ##c | de bad; f [UNK] good; ab c ##d | ##e ##f; bad bad x ##y | ##z w good
    assert "6 of 8 test rows are longer than 6 tokens, and their last 8 words" in caplog.text
    words, starts = data.words_of(first_id("test"))
    assert words == ["good", "abc", "de", "bad"]
    assert starts.tolist() == [1, 2]
    batch = next(iter(data.test_dataloader()))
    assert batch["input_ids"].shape[1] <= 6


def test_predictions_need_no_tags(tagged: Build, tmp_path: Path) -> None:
    (tmp_path / "new.conll").write_text("good\nabc\n\nbad\n")
    data = tagged(path=str(tmp_path), splits={"predict": "new.conll"})
    data.setup("predict")
    (batch,) = data.predict_dataloader()
    assert "labels" not in batch
    words, starts = data.words_of(first_id("predict"))
    assert words == ["good", "abc"]
    assert starts.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("file", "row", "message"),
    [
        ("test", {"words": ["a", "b"], "ner_tags": ["O", "B-new"]},
         r"test\.jsonl, row 21: data\.tags holds 'B-new', and training knows only"),
        ("train", {"words": ["a", "b"], "ner_tags": ["O"]},
         r"train\.jsonl: row 21 has 2 words in column words and 1 tags in column ner_tags"),
        ("test", {"words": ["a"], "ner_tags": None},
         r"test\.jsonl: row 21 has 1 words in column words and 0 tags"),
        ("train", {"words": ["a"], "ner_tags": [None]}, "row 21 has a word without a tag"),
        ("train", {"words": [], "ner_tags": []}, "row 21 has no word"),
        ("train", {"words": [""], "ner_tags": ["O"]}, "row 21 has '' as word 1"),
    ],
)  # fmt: skip
def test_wrong_rows_are_named_before_training(
    tagged: Build, tmp_path: Path, file: str, row: dict[str, Any], message: str
) -> None:
    for name in ("train", "test"):
        write_jsonl(tmp_path / f"{name}.jsonl", SENTENCES)
    with (tmp_path / f"{file}.jsonl").open("a") as lines:
        lines.write(f"\n{json.dumps(row)}")
    data = tagged(path=str(tmp_path), words="words", tags="ner_tags")
    with pytest.raises(InputError, match=message):
        data.setup("fit")


def test_texts_in_place_of_lists_are_refused(tagged: Build, tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("tokens,tags\ngood bad,O O\nbad,O\n")
    with pytest.raises(InputError, match=r"column tokens holds string and no lists.*data\.words"):
        tagged(path=str(tmp_path)).setup("fit")
    with pytest.raises(InputError, match=r"data\.tags: .* has no column 'ner'"):
        tagged(tags="ner", path=str(tmp_path)).setup("fit")
