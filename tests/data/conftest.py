"""Tiny tokenizers and files for the data tests."""

import json
import string
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub.constants
import pytest

from lightning_compress.data import LanguageModelingDataModule, TextClassificationDataModule

LETTERS = list(string.ascii_lowercase)


@pytest.fixture(scope="session")
def bert_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a WordPiece tokenizer that knows some words and every letter."""
    folder = tmp_path_factory.mktemp("bert_tokenizer")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = [*special, "good", "bad", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    (folder / "vocab.txt").write_text("\n".join(pieces))
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    config = dict(zip(names, special, strict=True)) | {"tokenizer_class": "BertTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "model_max_length": 64}))
    return str(folder)


@pytest.fixture(scope="session")
def gpt2_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a byte-level tokenizer of letters, without a padding token."""
    folder = tmp_path_factory.mktemp("gpt2_tokenizer")
    vocabulary = {piece: i for i, piece in enumerate(["<|endoftext|>", "Ġ", *LETTERS])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokens = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    config = {"tokenizer_class": "GPT2Tokenizer", "model_max_length": 64, **tokens}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails at once instead of trying to reach the Hub."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def words(count: int) -> list[str]:
    """Texts of 1 to 13 letters, all different."""
    return [LETTERS[i % 26] * (1 + i * 7 % 13) + f" {LETTERS[i // 26]}" for i in range(count)]


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., Path]:
    """Writes a jsonl file of texts and labels."""

    def write(texts: Sequence[object], labels: Sequence[object], name: str = "data.jsonl") -> Path:
        rows = [{"text": t, "label": y} for t, y in zip(texts, labels, strict=True)]
        file = tmp_path / name
        file.write_text("\n".join(map(json.dumps, rows)))
        return file

    return write


@pytest.fixture
def classification(
    tmp_path: Path, bert_tokenizer: str, write_rows: Callable[..., Path]
) -> Callable[..., TextClassificationDataModule]:
    """A data module on 60 training and 20 test rows with two classes, or on what is given."""

    def build(**options: Any) -> TextClassificationDataModule:
        if "path" not in options:
            write_rows(words(60), [i % 3 == 0 for i in range(60)], "train.jsonl")
            write_rows(words(20), [i % 3 == 0 for i in range(20)], "test.jsonl")
        defaults: dict[str, Any] = {
            "path": str(tmp_path),
            "tokenizer": bert_tokenizer,
            "max_length": 64,
            "batch_size": 4,
            "cache_dir": str(tmp_path / "cache"),
        }
        return TextClassificationDataModule(**{**defaults, **options})

    return build


@pytest.fixture
def language_modeling(
    tmp_path: Path, gpt2_tokenizer: str
) -> Callable[..., LanguageModelingDataModule]:
    """A causal data module on 60 lines of text, and 9 others to test."""

    def build(**options: Any) -> LanguageModelingDataModule:
        if "path" not in options:
            (tmp_path / "train.txt").write_text("\n\n".join(words(60)))
            (tmp_path / "test.txt").write_text("\n".join(words(9)))
        defaults: dict[str, Any] = {
            "path": str(tmp_path),
            "tokenizer": gpt2_tokenizer,
            "max_length": 12,
            "batch_size": 4,
            "cache_dir": str(tmp_path / "cache"),
        }
        return LanguageModelingDataModule(**{**defaults, **options})

    return build
