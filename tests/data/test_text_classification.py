"""The data module for classification, from files to batches."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lightning_compress.data import TextClassificationDataModule, sources, token_cache
from lightning_compress.data.labels import KnownLabels
from lightning_compress.data.local_files import read_rows
from lightning_compress.data.splits import first_id
from lightning_compress.errors import InputError

from .conftest import words

Build = Callable[..., TextClassificationDataModule]
Write = Callable[..., Path]


def test_batches_tell_what_the_rows_say(classification: Build) -> None:
    data = classification()
    data.setup("fit")
    assert (data.num_labels, data.label_names) == (2, ["False", "True"])
    assert data.problem_type == "single_label_classification"
    assert data.tokenizer is not None
    assert data.pad_token_id == data.tokenizer.pad_token_id == 0
    texts, found = words(60), {}
    for loader in (data.train_dataloader(), data.val_dataloader()):
        for batch in loader:
            assert batch["input_ids"].shape[1] % 8 == 0
            for i, row in enumerate(batch["example_id"].tolist()):
                ids = batch["input_ids"][i][batch["attention_mask"][i] == 1].tolist()
                assert ids == data.tokenizer(texts[row])["input_ids"]
                found[row] = batch["labels"][i].item()
    assert found == {row: int(row % 3 == 0) for row in range(60)}


def test_ids_tell_the_splits_apart(classification: Build, write_rows: Write) -> None:
    write_rows(["a", "b"], [0, 1], "validation.jsonl")
    data = classification(limits={"train": 7})
    for stage in ("fit", "test", "predict"):
        data.setup(stage)
    found = [
        sorted(torch.cat([batch["example_id"] for batch in loader]).tolist())
        for loader in (
            data.train_dataloader(),
            data.val_dataloader(),
            data.test_dataloader(),
            data.predict_dataloader(),
        )
    ]
    test = [first_id("test") + row for row in range(20)]
    assert found == [list(range(7)), [2**40, 2**40 + 1], test, test]


def test_training_does_not_touch_the_test_rows(
    classification: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    real = read_rows

    def watched(file: Path, *args: object, **options: object) -> object:
        read.append(file.name)
        return real(file, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(sources, "read_rows", watched)
    data = classification()
    data.setup("fit")
    assert set(read) == {"train.jsonl"}
    data.setup("test")
    assert "test.jsonl" in read


def test_a_second_data_module_tokenizes_nothing(
    classification: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    classification().setup("fit")
    monkeypatch.setattr(token_cache, "_encode_chunk", None)
    data = classification(seed=1, batch_size=7, validation_fraction=0.3)
    data.setup("fit")
    assert len(data.train_dataloader()) == 6


def test_pairs(classification: Build, tmp_path: Path) -> None:
    rows = [{"one": "good a", "two": w, "label": i % 2} for i, w in enumerate(words(10))]
    (tmp_path / "train.json").write_text("\n".join(map(json.dumps, rows)))
    data = classification(path=str(tmp_path / "train.json"), text=["one", "two"])
    data.setup("fit")
    assert data.tokenizer is not None
    for batch in data.train_dataloader():
        for i, row in enumerate(batch["example_id"].tolist()):
            kept = batch["attention_mask"][i] == 1
            expected = data.tokenizer(rows[row]["one"], rows[row]["two"])
            assert batch["input_ids"][i][kept].tolist() == expected["input_ids"]
            assert batch["token_type_ids"][i][kept].tolist() == expected["token_type_ids"]


@pytest.mark.parametrize(
    ("labels", "problem", "dtype", "shape"),
    [
        ([0.5, 1.5, 2.0, 3.5], "regression", torch.float32, (4,)),
        ([["a"], [], ["b", "a"], ["c"]], "multi_label_classification", torch.float32, (4, 3)),
        (["no", "yes", "no", "yes"], "single_label_classification", torch.int64, (4,)),
    ],
)
def test_labels_of_every_kind(
    classification: Build,
    write_rows: Write,
    labels: list[object],
    problem: str,
    dtype: torch.dtype,
    shape: tuple[int, ...],
) -> None:
    write_rows(words(4), labels, "train.jsonl")
    path = str(write_rows(words(4), labels, "valid.jsonl").parent)
    data = classification(path=path)
    data.setup("fit")
    assert data.problem_type == problem
    (batch,) = data.train_dataloader()
    assert batch["labels"].dtype == dtype
    assert batch["labels"].shape == shape


def test_evaluation_alone_learns_the_classes_from_training(
    classification: Build, write_rows: Write
) -> None:
    write_rows(["a", "b"], ["x", "y"], "train.jsonl")
    path = str(write_rows(["a", "b"], ["y", "y"], "test.jsonl").parent)
    data = classification(path=path)
    data.setup("test")
    assert data.label_names == ["x", "y"]
    (batch,) = data.test_dataloader()
    assert batch["labels"].tolist() == [1, 1]


def test_prediction_needs_no_labels(classification: Build, tmp_path: Path) -> None:
    (tmp_path / "new.txt").write_text("good\nbad a\n")
    data = classification(path=str(tmp_path), splits={"predict": "new.txt"})
    data.setup("predict")
    assert data.num_labels is None
    (batch,) = data.predict_dataloader()
    assert len(batch["input_ids"]) == 2


def test_task_name(classification: Build, tmp_path: Path) -> None:
    (tmp_path / "reviews.jsonl.gz").touch()
    assert classification(path=str(tmp_path / "reviews.jsonl.gz")).task_name == "reviews"
    assert classification(path=str(tmp_path)).task_name == tmp_path.name
    assert classification(path="nyu-mll/glue", config="mrpc").task_name == "glue/mrpc"
    assert classification(path=None).task_name == "built-in"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, r"data\.batch_size is 0: it must be at least 1"),
        ({"eval_batch_size": 0}, r"data\.eval_batch_size is 0"),
        ({"limits": {"train": 0}}, r"data\.limits\.train is 0"),
        ({"num_workers": -1}, r"data\.num_workers is -1"),
        ({"seed": -1}, r"data\.seed is -1"),
        ({"validation_fraction": 1.0}, r"data\.validation_fraction is 1\.0"),
        ({"text": []}, r"data\.text is \[\]"),
        ({"text": ["a", "a"]}, r"data\.text is \['a', 'a'\]"),
    ],
)
def test_options_out_of_range(
    classification: Build, options: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        classification(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 2}, r"data\.max_length is 2: .* at least 3"),
        ({"max_length": 65}, r"data\.max_length is 65: .* at most 64"),
        ({"text": "review"}, r"data\.text: .* has no column 'review'; it has 'text', 'label'"),
        ({"label": "stars"}, r"data\.label: .* has no column 'stars'"),
        ({"tokenizer": None}, r"data\.tokenizer: name the tokenizer"),
        ({"limits": {"predict": 3}}, r"data\.limits\.predict: there is no predict split"),
        ({"limits": {"train": 1}}, r"one and the same label.*data\.limits\.train"),
    ],
)
def test_mistakes_found_before_training(
    classification: Build, options: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        classification(**options).setup("fit")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.csv", None, r"data\.path: there is no file or folder .*none\.csv"),
        ("empty.csv", "", r"empty\.csv is empty: data\.path"),
        ("head.csv", "text,label\n", r"head\.csv has no rows: data\.path"),
        ("empty.jsonl", "", r"empty\.jsonl: no column, it is empty .*data\.path"),
        ("blank.jsonl", "\n\n", r"blank\.jsonl: no column"),
        ("one.csv", "text,label\na,1\nb,1\n", r"one\.csv: .*same label, 1.*data\.label"),
        ("null.csv", "text,label\na,1\n,0\n", r"null\.csv: row 2 has no text in column text"),
    ],
)
def test_bad_training_files_are_named(
    classification: Build, tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        classification(path=str(tmp_path / name)).setup("fit")


@pytest.mark.parametrize(
    ("validation", "message"),
    [
        ((["a"], ["z"]), "'z', and training knows only 'x', 'y'"),
        ((["a"], [None]), "1 of 1 rows have no label"),
        (([None], ["x"]), "row 1 has no text in column text"),
    ],
)
def test_bad_validation_rows_are_found_before_training(
    classification: Build,
    write_rows: Write,
    validation: tuple[list[object], list[object]],
    message: str,
) -> None:
    write_rows(["a", "b"], ["x", "y"], "train.jsonl")
    path = str(write_rows(*validation, "dev.jsonl").parent)
    with pytest.raises(InputError, match=message):
        classification(path=path).setup("fit")


def test_a_test_file_without_labels_is_found_before_training(
    classification: Build, write_rows: Write, tmp_path: Path
) -> None:
    write_rows(["a", "b"], ["x", "y"], "train.jsonl")
    (tmp_path / "test.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(InputError, match=r"no column 'label'; .*data\.splits\.test"):
        classification(path=str(tmp_path)).setup("fit")
    data = classification(path=str(tmp_path), splits={"train": "train.jsonl"})
    data.setup("fit")
    with pytest.raises(InputError, match=r"no test split .*data\.splits\.test"):
        data.setup("test")


@pytest.fixture
def columns(classification: Build, tmp_path: Path) -> Callable[..., TextClassificationDataModule]:
    """A data module of a csv file with several label columns."""

    def build(lines: list[str], **options: object) -> TextClassificationDataModule:
        for split in ("train", "validation", "test"):
            (tmp_path / f"{split}.csv").write_text("\n".join(["text,rude,long,new", *lines]))
        options = {"label": ["rude", "new"], **options}
        return classification(path=str(tmp_path), splits=None, format="csv", **options)

    return build


def test_several_label_columns(columns: Build) -> None:
    data = columns(["a,1,7,False", "b,1,7,False", "c,0.0,7,False", "d,1,7,True"])
    data.setup("fit")
    assert (data.problem_type, data.label_names) == ("multi_label_classification", ["rude", "new"])
    (batch,) = data.val_dataloader()
    order = batch["example_id"].argsort()
    assert batch["labels"][order].tolist() == [[1, 0], [1, 0], [0, 0], [1, 1]]
    assert data.label_frequencies == [0.75, 0.25]


def test_several_label_columns_follow_the_names_of_a_trained_model(columns: Build) -> None:
    data = columns(["a,1,7,0", "b,0,7,1"])
    data.known_labels = KnownLabels("multi_label_classification", 2, ("new", "rude"))
    data.setup("test")
    (batch,) = data.test_dataloader()
    assert batch["labels"][batch["example_id"].argsort()].tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ("rude", "new", "old"),
            "'rude', 'new', and the model has the labels 'rude', 'new', 'old'",
        ),
        (("rude", "old"), "'rude', 'new', and the model has the labels 'rude', 'old'"),
        (("LABEL_0", "LABEL_1", "LABEL_2"), "the model has the labels 'LABEL_0'"),
    ],
)
def test_columns_of_other_labels_than_the_model_are_refused(
    columns: Build, names: tuple[str, ...], message: str
) -> None:
    data = columns(["a,1,7,0", "b,0,7,1"])
    data.known_labels = KnownLabels("multi_label_classification", len(names), names)
    with pytest.raises(InputError, match=message):
        data.setup("test")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["a,1,7,0", "b,2,7,1"], r"column 'rude' of data\.label holds 2: each"),
        (["a,1,7,0", "b,-1,7,-1"], "rows without a label"),
        (["a,1,7,0", "b,0.5,7,1"], r"column 'rude' of data\.label holds 0\.5"),
        (["a,1,7,0", "b,,7,1"], "column 'rude'.*no label.*row 2"),
        (["a,yes,7,0", "b,no,7,1"], "column 'rude' of data.label holds"),
    ],
)
def test_label_columns_hold_zeros_and_ones(columns: Build, lines: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        columns(lines).setup("fit")


@pytest.mark.parametrize("label", [[], ["a", "a"]])
def test_label_columns_are_named_once(classification: Build, label: list[str]) -> None:
    with pytest.raises(InputError, match=r"data\.label is .* several different"):
        classification(label=label)
