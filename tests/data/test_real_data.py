"""Every format of the real data loads by configuration alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning.pytorch.cli import LightningArgumentParser

from lightning_compress.data import LanguageModelingDataModule, TextClassificationDataModule
from lightning_compress.data.splits import first_id

pytestmark = pytest.mark.real

SST2: dict[str, Any] = {
    "path": "sst2",
    "splits": {"train": "train.tsv", "test": "dev.tsv", "predict": "test.tsv"},
    "text": "sentence",
}
IMDB: dict[str, Any] = {"path": "imdb"}
MRPC: dict[str, Any] = {
    "path": "mrpc",
    "splits": {"train": "train.tsv", "validation": "dev.tsv", "test": "test.tsv"},
    "text": ["#1 String", "#2 String"],
    "label": "Quality",
}
MRPC_ORIGINAL: dict[str, Any] = {
    **MRPC,
    "format": "tsv",
    "splits": {"train": "msr_paraphrase_train.txt", "test": "msr_paraphrase_test.txt"},
}
LANGUAGE: dict[str, Any] = {
    "path": "imdb",
    "splits": {
        "train": ["train.jsonl.gz", "unsupervised.jsonl.gz"],
        "test": "../wikitext-2/wiki.valid.tokens",
    },
}


@pytest.fixture
def load(shared: Path, tmp_path: Path) -> Callable[..., Any]:
    """Builds a data module from plain data, as the command line does from YAML."""

    def build(kind: type, recipe: dict[str, Any], **options: Any) -> Any:
        options = {"tokenizer": "bert-base-uncased", **recipe, **options}
        options["path"] = str(shared / "data" / options["path"])
        options["tokenizer"] = str(shared / "models" / "tokenizers" / options["tokenizer"])
        options["cache_dir"] = str(tmp_path)
        parser = LightningArgumentParser()
        parser.add_class_arguments(kind, "data")
        return parser.instantiate(parser.parse_object({"data": options}))["data"]

    return build


def texts_of(data: Any, loader: Any) -> dict[int, tuple[str, int | None]]:
    found = {}
    for batch in loader:
        texts = data.tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True)
        labels = batch["labels"].tolist() if "labels" in batch else [None] * len(texts)
        for example, text, label in zip(batch["example_id"].tolist(), texts, labels, strict=True):
            found[example % 2**40] = (text, label)
    return found


@pytest.mark.parametrize(
    ("recipe", "first"),
    [
        (SST2, ("it's a charming and often affecting journey.", 1)),
        (IMDB, ("once again mr. costner has dragged out a movie", 0)),
        (MRPC, ("pccw's chief operating officer, mike butcher", 1)),
        (MRPC_ORIGINAL, ("pccw's chief operating officer, mike butcher", 1)),
    ],
)
def test_classification(
    load: Callable[..., Any], recipe: dict[str, Any], first: tuple[str, int]
) -> None:
    data = load(TextClassificationDataModule, recipe, limits={"train": 60, "test": 20})
    data.setup("fit")
    data.setup("test")
    assert data.label_names == ["0", "1"]
    rows = texts_of(data, data.test_dataloader())
    assert len(rows) == 20
    text, label = rows[0]
    assert text.replace(" ' ", "'").replace(" '", "'").startswith(first[0])
    assert label == first[1]
    assert len(texts_of(data, data.train_dataloader())) >= 54


def test_quotes_of_tab_separated_files_are_text(load: Callable[..., Any]) -> None:
    data = load(TextClassificationDataModule, MRPC, limits={"train": 40})
    data.setup("fit")
    assert '" the witness "' in texts_of(data, data.train_dataloader())[0][0]


def test_unlabelled_rows_can_be_predicted(load: Callable[..., Any]) -> None:
    data = load(TextClassificationDataModule, SST2, limits={"predict": 10})
    data.setup("predict")
    rows = texts_of(data, data.predict_dataloader())
    assert rows[0] == ("uneasy mishmash of styles and genres.", None)


@pytest.mark.parametrize(
    "splits", [None, {"train": "train.jsonl.gz", "unlabelled": "unsupervised.jsonl.gz"}]
)
def test_unlabelled_reviews_among_the_labelled_ones(
    load: Callable[..., Any], splits: dict[str, str] | None
) -> None:
    limits = {"train": 60, "unlabelled": 90}
    options = {"splits": splits, "limits": limits, "train_on": "both"}
    data = load(TextClassificationDataModule, IMDB, **options)
    data.setup("fit")
    assert data.label_names == ["0", "1"]
    found: dict[int, int] = {}
    for batch in data.train_dataloader():
        found.update(zip(batch["example_id"].tolist(), batch["labels"].tolist(), strict=True))
    labelled = {row: row % 2 for row in data.examples("train").sequences.ids.tolist() if row < 60}
    assert len(labelled) == 54
    assert found == labelled | {first_id("unlabelled") + row: -100 for row in range(90)}
    first = data.examples("train").by_ids(np.array([first_id("unlabelled")]))
    text = data.tokenizer.decode(first["input_ids"][0], skip_special_tokens=True)
    assert text.startswith("i admit, the great majority of films released before say 1933")


def test_whole_sst2_counts(load: Callable[..., Any]) -> None:
    data = load(TextClassificationDataModule, SST2)
    data.setup("test")
    labels = [label for _, label in texts_of(data, data.test_dataloader()).values()]
    assert (len(labels), labels.count(1)) == (872, 444)


@pytest.mark.parametrize("objective", ["causal", "masked"])
def test_language_modeling(load: Callable[..., Any], objective: str) -> None:
    tokenizer = {"causal": "gpt2", "masked": "bert-base-uncased"}[objective]
    data = load(
        LanguageModelingDataModule,
        LANGUAGE,
        tokenizer=tokenizer,
        objective=objective,
        limits={"train": 40, "test": 200},
    )
    data.setup("fit")
    data.setup("test")
    for loader in (data.train_dataloader(), data.test_dataloader()):
        lengths = [batch["input_ids"].shape[1] for batch in loader]
        assert max(lengths) == 128
    first = min(data.test_dataloader(), key=lambda batch: int(batch["example_id"].min()))
    if objective == "causal":
        place = int(first["example_id"].argmin())
        assert data.tokenizer.decode(first["input_ids"][place]).startswith(" = Homarus gammarus =")
