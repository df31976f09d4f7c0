"""Finding the splits of a file, a folder, the Hub and the built-in corpus."""

import json
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import datasets
import pytest

from lightning_compress.data.sources import DatasetSource, FileSource, Source, find_sources
from lightning_compress.errors import InputError


def find(path: object, **options: Any) -> dict[str, Source]:
    defaults: dict[str, Any] = {
        "config": None,
        "splits": None,
        "form": None,
        "cache_dir": Path("cache"),
    }
    found = find_sources(path=None if path is None else str(path), **{**defaults, **options})
    return {str(split): source for split, source in found.items()}


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_text("text\nx\n")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["train.tsv", "dev.tsv", "test.tsv"], {"train", "validation", "test"}),
        (["wiki.train.tokens", "wiki.valid.tokens"], {"train", "validation"}),
        (["train-00000-of-2.parquet", "train-00001-of-2.parquet"], {"train"}),
        (["my_Training.csv", "contest.csv", "README.md"], {"train"}),
    ],
)
def test_folder_by_file_names(tmp_path: Path, names: list[str], expected: set[str]) -> None:
    touch(tmp_path, *names)
    assert set(find(tmp_path)) == expected


@pytest.mark.parametrize(
    ("names", "found_by_name"),
    [
        (["Unsupervised.csv"], True),
        (["unlabeled-0.csv", "unlabeled-1.csv"], True),
        (["my_unlabelled.csv"], True),
        (["unlabelled.csv", "unsupervised.csv"], False),  # which of them?
        (["test_unlabelled.csv"], False),  # the test split, as ever
        (["semiunsupervised.csv"], False),
    ],
)
def test_unlabelled_texts_are_in_nobodys_way(
    tmp_path: Path, names: list[str], found_by_name: bool
) -> None:
    touch(tmp_path, "train.csv")
    before = find(tmp_path)
    touch(tmp_path, *names)
    found = find(tmp_path)
    unlabelled = found.pop("unlabelled", None)
    files = tuple(tmp_path / name for name in names)
    assert unlabelled == (FileSource(files) if found_by_name else None)
    assert found["train"] == before["train"]
    assert set(found) <= {"train", "test"}


def test_unlabelled_texts_alone_are_no_data_set(tmp_path: Path) -> None:
    touch(tmp_path, "unsupervised.csv")
    with pytest.raises(InputError, match=r"no file in .* is named after a split"):
        find(tmp_path)


def test_numbered_parts_are_joined_in_order(tmp_path: Path) -> None:
    for part in (1, 0):
        (tmp_path / f"train-{part}.csv").write_text(f"text\nrow {part}\n")
    table = find(tmp_path)["train"].read(["text"])
    assert table.column("text").to_pylist() == ["row 0", "row 1"]


def test_limit_goes_across_files(tmp_path: Path) -> None:
    for part in range(3):
        (tmp_path / f"{part}.csv").write_text("text\na\nb\n")
    source = find(tmp_path, splits={"train": ["0.csv", "1.csv", "2.csv"]})["train"]
    assert [source.read(["text"], limit=n).num_rows for n in (1, 2, 3, 9)] == [1, 2, 3, 6]


def test_files_differ_in_their_fingerprints(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    touch(tmp_path, "a.csv")
    before = FileSource((file,)).fingerprint(["text"])
    assert before == FileSource((file,)).fingerprint(["text"])
    assert before != FileSource((file,), "tsv").fingerprint(["text"])
    file.write_text("text\ny\n")
    assert before != FileSource((file,)).fingerprint(["text"])


def test_single_file_is_the_training_split(tmp_path: Path) -> None:
    touch(tmp_path, "anything.csv")
    assert find(tmp_path / "anything.csv") == {
        "train": FileSource((tmp_path / "anything.csv",), None)
    }


def test_splits_are_relative_to_the_path(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    touch(tmp_path, "in/a.csv", "other.csv")
    found = find(tmp_path / "in", splits={"train": "a.csv", "test": "../other.csv"})
    assert found["test"].read(["text"]).num_rows == 1


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        ("./missing.csv", {}, r"data\.path: there is no file or folder \./missing\.csv"),
        ("missing.csv", {}, r"data\.path: there is no file or folder missing\.csv"),
        ("a/b/c", {}, r"data\.path: there is no file or folder a/b/c"),
        ("someone/no-such-data", {"config": "x"}, r"data\.path: someone/no-such-data with"),
    ],
)
def test_what_is_not_there_is_named(path: str, options: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        find(path, **options)


@pytest.mark.usefixtures("offline")
def test_hub_that_cannot_be_reached_names_the_remedy() -> None:
    with pytest.raises(InputError, match="network, or download the files"):
        find("nyu-mll/no-such-data")


def test_folder_mistakes(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no file in .* is named after a split"):
        find(tmp_path)
    touch(tmp_path, "train.tsv", "train_small.tsv")
    with pytest.raises(InputError, match=r"train\.tsv, train_small\.tsv.*data\.splits"):
        find(tmp_path)
    with pytest.raises(InputError, match=r"data\.splits\.test: there is no file .*t\.tsv"):
        find(tmp_path, splits={"test": "t.tsv"})
    with pytest.raises(InputError, match=r"data\.config is for datasets on the Hub"):
        find(tmp_path, config="mrpc")


@pytest.fixture
def reviews() -> datasets.DatasetDict:
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    rows = {"text": ["a", "b", "c"], "label": [0, 1, 0]}
    dataset = datasets.Dataset.from_dict(rows, features=features)
    return datasets.DatasetDict({"train": dataset, "validation": dataset, "test": dataset})


def test_hub_datasets_come_through_datasets(
    reviews: datasets.DatasetDict, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    def load(*args: object, **options: object) -> datasets.DatasetDict:
        asked.extend([args, options])
        return reviews

    monkeypatch.setattr(datasets, "load_dataset", load)
    found = find("nyu-mll/glue", config="sst2", splits={"train": "train", "test": "validation"})
    assert asked == [("nyu-mll/glue", "sst2"), {"cache_dir": str(Path("cache/datasets"))}]
    assert list(found) == ["train", "test"]
    assert found["test"].name == "nyu-mll/glue (validation)"
    assert found["train"].class_names("label") == ["no", "yes"]
    assert found["train"].read(["text"], limit=2).to_pylist() == [{"text": "a"}, {"text": "b"}]
    assert set(find("nyu-mll/glue")) == {"train", "validation", "test"}
    reviews["unsupervised"] = reviews["train"].select([2])
    assert set(find("imdb")) == {"train", "validation", "test", "unlabelled"}
    unlabelled = find("imdb", splits={"unlabelled": "unsupervised"})["unlabelled"]
    assert unlabelled.read(["text"]).to_pylist() == [{"text": "c"}]
    with pytest.raises(InputError, match=r"data\.splits\.test: .* no split dev; it has train"):
        find("nyu-mll/glue", splits={"test": "dev"})


@pytest.mark.usefixtures("offline")
def test_hub_dataset_out_of_the_cache(reviews: datasets.DatasetDict, tmp_path: Path) -> None:
    """What ``datasets`` itself finds under a Hub name, once it has been downloaded."""
    file = tmp_path / "train.parquet"
    reviews["train"].to_parquet(str(file))
    made = datasets.load_dataset("parquet", "mrpc", data_files=str(file), cache_dir=str(tmp_path))
    folder = tmp_path / "cache" / "datasets" / "nyu-mll___glue" / "mrpc" / "0.0.0" / "hash"
    shutil.copytree(Path(made["train"].cache_files[0]["filename"]).parent, folder)
    (folder / "parquet-train.arrow").rename(folder / "glue-train.arrow")
    info = json.loads((folder / "dataset_info.json").read_text())
    (folder / "dataset_info.json").write_text(json.dumps({**info, "dataset_name": "glue"}))
    source = find("nyu-mll/glue", config="mrpc", cache_dir=tmp_path / "cache")["train"]
    assert source.class_names("label") == ["no", "yes"]
    assert source.read(["text"]).column("text").to_pylist() == ["a", "b", "c"]


def test_dataset_fingerprints_follow_the_contents(reviews: datasets.DatasetDict) -> None:
    source = DatasetSource(reviews["train"], "x")
    again = DatasetSource(datasets.Dataset.from_dict(reviews["train"].to_dict()), "y")
    assert source.fingerprint(["text"]) == again.fingerprint(["text"])
    changed = DatasetSource(reviews["train"].select([0, 1, 1]), "x")
    assert changed.fingerprint(["text"]) != source.fingerprint(["text"])


def test_no_path_is_the_built_in_corpus(
    reviews: datasets.DatasetDict, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = ModuleType("lightning_compress.data.builtin.corpus")
    corpus.builtin_corpus = lambda: reviews  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, corpus.__name__, corpus)
    assert find(None)["train"].columns() == ["text", "label"]
