"""Texts with and without labels, teachers that know them, and students that do not."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from transformers import BertTokenizer

from lightning_compress.data import LanguageModelingDataModule, TextClassificationDataModule
from lightning_compress.modules import DistillationModule, FineTuningModule
from lightning_compress.saving import save_compressed

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [f"w{number}" for number in range(95)]
TEACHER: dict[str, Any] = {
    "model_type": "bert", "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4,
    "intermediate_size": 64, "max_position_embeddings": 32,
}  # fmt: skip
STUDENT: dict[str, Any] = {
    **TEACHER,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
GPT2: dict[str, Any] = {"model_type": "gpt2", "n_embd": 32, "n_layer": 4, "n_head": 4,
    "n_inner": 64, "n_positions": 32, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
}  # fmt: skip
QUIET: dict[str, Any] = {
    "accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False,
    "enable_model_summary": False, "enable_checkpointing": False,
}  # fmt: skip


def write_tokenizer(folder: Path, words: list[str]) -> Path:
    """A folder with a tokenizer that knows these words."""
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join([*SPECIAL, *words]))
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


def text_data(folder: Path, **options: Any) -> TextClassificationDataModule:
    """Of the texts in ``folder``."""
    defaults: dict[str, Any] = {
        "path": str(folder / "texts"), "tokenizer": str(folder / "tokenizer"), "max_length": 24,
        "batch_size": 16, "cache_dir": str(folder / "tokens"), "validation_fraction": 0.25,
    }  # fmt: skip
    return TextClassificationDataModule(**{**defaults, **options})


def lines(folder: Path, **options: Any) -> LanguageModelingDataModule:
    """The same texts for language models."""
    defaults: dict[str, Any] = {
        "path": str(folder / "texts"), "tokenizer": str(folder / "tokenizer"), "max_length": 24,
        "batch_size": 8, "cache_dir": str(folder / "tokens"), "validation_fraction": 0.25,
    }  # fmt: skip
    return LanguageModelingDataModule(**{**defaults, **options})


def trained(folder: Path, name: str, data: L.LightningDataModule, epochs: int, **options: Any):
    """Fine-tune a model and keep it in ``folder/name``; gives the module."""
    torch.manual_seed(0)
    module = FineTuningModule(**{"learning_rate": 3e-3, **options})
    trainer = L.Trainer(**QUIET, max_epochs=epochs, default_root_dir=folder)
    trainer.fit(module, datamodule=data)
    tokenizer = data.tokenizer  # type: ignore[attr-defined]  # of this package
    save_compressed(module.model, folder / name, tokenizer)
    trainer.save_checkpoint(folder / f"{name}.ckpt")
    return module


@pytest.fixture(scope="session")
def trained_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``texts``, their ``tokenizer``, and a ``teacher`` (.ckpt beside it) of them.

    150 rows are for training, of which 38 are carved out for validation; 60 have no label.
    """
    folder = tmp_path_factory.mktemp("trained_teacher")
    write_tokenizer(folder / "tokenizer", WORDS)
    (folder / "texts").mkdir()
    draw = random.Random(0)
    for name, count in (("train", 150), ("test", 40), ("unlabelled", 60)):
        rows = ["text,label"]
        for row in range(count):
            chosen = draw.choices(WORDS[1:], k=draw.randint(3, 20))
            # The first word of the list is what makes a text positive.
            chosen[:3] = WORDS[:1] * 3 if row % 2 else chosen[:3]
            label = "" if name == "unlabelled" else ["bad", "good"][row % 2]
            rows.append(f"{' '.join(chosen)},{label}")
        (folder / "texts" / f"{name}.csv").write_text("\n".join(rows) + "\n")
    trained(folder, "teacher", text_data(folder), 5, config=TEACHER)
    return folder


@pytest.fixture
def texts(trained_teacher: Path) -> Callable[..., TextClassificationDataModule]:
    """Builds a data module of the labelled texts."""
    return lambda **options: text_data(trained_teacher, **options)


@pytest.fixture
def student(trained_teacher: Path, tmp_path: Path) -> Callable[..., DistillationModule]:
    """Builds a small student of the teacher, with dropout, the same every time."""

    def build(seed: int = 0, **options: Any) -> DistillationModule:
        torch.manual_seed(seed)
        defaults: dict[str, Any] = {
            "config": STUDENT, "teacher": str(trained_teacher / "teacher"), "learning_rate": 3e-3,
            "cache_dir": str(tmp_path / "cache"),
        }  # fmt: skip
        if "pretrained" in options or "every_nth_layer" in options:
            del defaults["config"]
        return DistillationModule(**{**defaults, **options})

    return build
