"""What ``predictions.jsonl`` tells about a row."""

import json
import sys

import pytest
import torch

from lightning_compress.cli import main as cli
from lightning_compress.cli.predictions import described
from lightning_compress.data.splits import first_id
from lightning_compress.tasks import task_named


def described_rows(problem, logits, names):
    batch = task_named("sequence-classification", problem).predict(torch.tensor(logits))
    columns = {"example_id": [first_id("test") + row for row in range(len(logits))]}
    columns |= {name: values.tolist() for name, values in batch.items()}
    return [
        described(dict(zip(columns, row, strict=True)), names)
        for row in zip(*columns.values(), strict=True)
    ]


def test_a_class_has_its_name_and_probabilities_by_name():
    rows = described_rows("single_label_classification", [[0.0, 1.0], [2.0, 0.0]], ["bad", "good"])
    assert [row["row"] for row in rows] == [0, 1]
    assert [row["label"] for row in rows] == ["good", "bad"]
    assert rows[0]["probabilities"]["good"] == pytest.approx(1 / (1 + 2.718281828**-1), abs=1e-6)
    assert sum(rows[1]["probabilities"].values()) == pytest.approx(1)


def test_several_labels_are_those_more_likely_than_not():
    rows = described_rows("multi_label_classification", [[-1.0, 3.0, 0.1]], ["a", "b", "c"])
    assert rows[0]["labels"] == ["b", "c"]
    assert rows[0]["probabilities"]["a"] == pytest.approx(1 / (1 + 2.718281828), abs=1e-6)


def test_a_number_stays_a_number():
    (row,) = described_rows("regression", [[2.5]], ["LABEL_0"])
    assert row == {"row": 0, "example_id": first_id("test"), "logits": [2.5]}


def test_the_command_writes_the_names_of_the_data(text_files, monkeypatch):
    options = {
        "--data.path": text_files, "--data.tokenizer": text_files / "tokenizer",
        "--data.max_length": 32, "--data.cache_dir": text_files / "cache",
        "--trainer.accelerator": "cpu", "--trainer.logger": "false",
        "--trainer.default_root_dir": text_files / "run",
        "--model.config": "{model_type: bert, hidden_size: 16, num_hidden_layers: 1,"
        " num_attention_heads: 2, intermediate_size: 32, max_position_embeddings: 32}",
    }  # fmt: skip
    arguments = [str(part) for pair in options.items() for part in pair]
    monkeypatch.setattr(sys, "argv", ["lightning-compress", "predict", *arguments])
    cli.main()
    (path,) = (text_files / "run").rglob("predictions.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert sorted(row["row"] for row in rows) == list(range(40))
    assert {row["label"] for row in rows} <= {"bad", "good"}
    for row in rows:
        assert row["probabilities"].keys() == {"bad", "good"}
        assert row["label"] == max(row["probabilities"], key=row["probabilities"].get)
