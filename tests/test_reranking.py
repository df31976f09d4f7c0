"""Reranking from the files to the report: training, distillation, compression, commands."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from sklearn.metrics import ndcg_score
from transformers import BertForSequenceClassification

from lightning_compress.callbacks import CompressionBenchmark, StructuredPruning
from lightning_compress.cli.predictions import lines_of
from lightning_compress.data import RerankingDataModule, TextClassificationDataModule
from lightning_compress.errors import InputError
from lightning_compress.models import manifest_of
from lightning_compress.modules import DistillationModule, FineTuningModule
from lightning_compress.tasks import task_named, task_of

from .families import tiny_model, tiny_options

CONFIG = {**tiny_options("bert", num_hidden_layers=2), "vocab_size": 100}


@pytest.fixture
def paired(text_files: Path) -> Path:
    """A folder with train.jsonl, test.jsonl and a tokenizer: relevant documents have w1 first."""
    draw = random.Random(0)
    for name, queries in (("train", 60), ("test", 12)):
        rows = []
        for query in range(queries):
            relevant = draw.randrange(5)
            for document in range(5):
                words = [f"w{draw.randint(3, 94)}" for _ in range(draw.randint(3, 12))]
                words[0] = "w1" if document == relevant else "w2"
                rows.append({"query": f"w{query} w{draw.randint(3, 9)}", "topic": query,
                             "document": " ".join(words),
                             "label": int(document == relevant)})  # fmt: skip
        draw.shuffle(rows)
        (text_files / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        (text_files / f"{name}.csv").unlink()
    return text_files


def data_in(folder: Path, **options: Any) -> RerankingDataModule:
    return RerankingDataModule(
        path=str(folder), tokenizer=str(folder / "tokenizer"), query_id="topic", max_length=24,
        batch_size=16, cache_dir=str(folder / "cache"), **options,
    )  # fmt: skip


def module_of(**options: Any) -> FineTuningModule:
    options = {"config": CONFIG} | options
    return FineTuningModule(task="reranking", learning_rate=5e-3, **options)


def test_it_learns_and_a_student_learns_from_it(
    paired: Path, quiet_trainer: Callable[..., L.Trainer]
) -> None:
    L.seed_everything(0)
    trainer, module, data = quiet_trainer(max_epochs=6), module_of(), data_in(paired)
    trainer.fit(module, data)
    (found,) = trainer.test(module, data, verbose=False)
    assert found["test_ndcg_at_10"] > 0.95
    assert {"test_mrr_at_10", "test_loss"} <= found.keys()
    assert module.model.config.finetuning_task == "reranking"
    (paired / "teacher").mkdir()
    module.model.save_pretrained(paired / "teacher")
    again = BertForSequenceClassification.from_pretrained(paired / "teacher")
    assert task_of(again) is module.task

    kept = module_of(pretrained=str(paired / "teacher"), config=None)
    (same,) = quiet_trainer().test(kept, data_in(paired), verbose=False)
    assert same == pytest.approx(found)

    for options in ({"config": CONFIG}, {"every_nth_layer": 2}):
        student = DistillationModule(
            teacher=str(paired / "teacher"), task="reranking", learning_rate=5e-3,
            cache_dir=str(paired / "cache"), **options,
        )  # fmt: skip
        trainer = quiet_trainer(max_epochs=4)
        trainer.fit(student, data_in(paired))
        assert trainer.callback_metrics["val_teacher_ndcg_at_10"] > 0.95
        assert trainer.callback_metrics["val_ndcg_at_10"] > 0.9
        assert 0.8 < trainer.callback_metrics["val_agreement"] <= 1


def test_a_teacher_that_only_guesses_is_refused(
    paired: Path, quiet_trainer: Callable[..., L.Trainer]
) -> None:
    L.seed_everything(1)
    tiny_model("bert", num_labels=1).save_pretrained(paired / "t")
    student = DistillationModule(teacher=str(paired / "t"), task="reranking", config=CONFIG)
    with pytest.raises(InputError, match=r"no better than chance: its ndcg_at_10"):
        quiet_trainer(max_epochs=1).fit(student, data_in(paired, validation_fraction=0.5))


def test_pruning_and_balanced_classes(
    paired: Path, quiet_trainer: Callable[..., L.Trainer]
) -> None:
    callback = StructuredPruning(removed_macs_fraction=0.3, score="taylor")
    trainer = quiet_trainer(max_epochs=2, callbacks=[callback])
    module = module_of(class_weights="balanced")
    trainer.fit(module, data_in(paired))
    assert manifest_of(module.model)
    assert 0 <= trainer.callback_metrics["val_ndcg_at_10"] <= 1


def test_other_heads_and_other_data_are_refused(
    paired: Path, quiet_trainer: Callable[..., L.Trainer]
) -> None:
    tiny_model("bert", num_labels=3).save_pretrained(paired / "3")
    wrong = module_of(pretrained=str(paired / "3"), config=None)
    with pytest.raises(InputError, match=r"head for 3: .* model\.num_labels: 1"):
        quiet_trainer(max_epochs=1).fit(wrong, data_in(paired))
    with pytest.raises(InputError, match=r"the model has 2 outputs and a reranker has one"):
        quiet_trainer(max_epochs=1).fit(module_of(num_labels=2), data_in(paired))
    texts = TextClassificationDataModule(path=str(paired), tokenizer=str(paired / "tokenizer"))
    with pytest.raises(InputError, match=r"for sequence-classification: .*\.RerankingDataModule"):
        quiet_trainer(max_epochs=1).fit(module_of(), texts)


def test_rounded_numbers_of_queries_are_refused(
    paired: Path, quiet_trainer: Callable[..., L.Trainer]
) -> None:
    with pytest.raises(InputError, match=r"trainer\.precision: .* rounded to bfloat16"):
        quiet_trainer(max_epochs=1, precision="bf16-true").fit(module_of(), data_in(paired))
    trainer = quiet_trainer(max_epochs=1, precision="bf16-mixed")
    trainer.fit(module_of(), data_in(paired))
    assert 0 <= trainer.callback_metrics["val_ndcg_at_10"] <= 1


@pytest.fixture
def options(paired: Path) -> dict[str, list[Any]]:
    """Options of commands: of the data, of the model and of the Trainer."""
    data = {"data": "lightning_compress.data.RerankingDataModule", "data.path": paired,
            "data.query_id": "topic", "data.max_length": 24,
            "data.cache_dir": paired / "cache"}  # fmt: skip
    model = {"model.task": "reranking", "model.config": json.dumps(CONFIG),
             "model.learning_rate": 5e-3, "data.tokenizer": paired / "tokenizer"}  # fmt: skip
    trainer = {"trainer.accelerator": "cpu", "trainer.logger.save_dir": paired / "logs",
               "trainer.callbacks+": "lightning_compress.callbacks.CompressionBenchmark",
               "trainer.callbacks.runtimes": "[eager]", "trainer.callbacks.seconds": 0.02,
               "trainer.callbacks.precisions": "[fp32]"}  # fmt: skip
    return {
        name: [part for key, value in group.items() for part in (f"--{key}", value)]
        for name, group in (("data", data), ("model", model), ("trainer", trainer))
    }


def test_ranks_of_predictions(paired: Path) -> None:
    data = data_in(paired)
    data.setup("predict")
    rows = [json.loads(line) for line in (paired / "test.jsonl").read_text().splitlines()]
    logits = torch.randint(-3, 4, (60,), generator=torch.Generator().manual_seed(0)).float()
    batches = [
        {"example_id": batch["example_id"],
         **task_named("reranking").predict(logits[batch["example_id"] % 2**40, None])}
        for batch in data.predict_dataloader()
    ]  # fmt: skip
    told = list(lines_of(batches, ["LABEL_0"], data))
    assert [one["row"] for one in told] == list(range(60))
    for one, row, logit in zip(told, rows, logits.tolist(), strict=True):
        others = [logits[i] for i in range(60) if rows[i]["topic"] == row["topic"]]
        assert one["query"] == row["topic"]
        assert one["rank"] == 1 + sum(float(other) > logit for other in others)
        assert one["score"] == pytest.approx(1 / (1 + np.exp(-logit)))


@pytest.mark.slow
def test_commands(
    paired: Path, options: dict[str, list[Any]], run: Callable[..., tuple[object, str]]
) -> None:
    data, model, trainer = options["data"], options["model"], options["trainer"]
    code, printed = run("fit", *data, *model, *trainer, "--trainer.max_epochs", 6)
    assert code == 0, printed
    folder = paired / "logs" / "fit" / "version_0"
    (checkpoint,) = folder.rglob("epoch*.ckpt")
    ours = json.loads((folder / "report.json").read_text())
    assert ours["task"]["metric"] == "ndcg_at_10"
    assert list(folder.glob("events*"))

    code, printed = run("predict", *data, *model, *trainer, "--ckpt_path", checkpoint)
    assert code == 0, printed
    (path,) = (paired / "logs").rglob("predictions.jsonl")
    told = [json.loads(line) for line in path.read_text().splitlines()]
    rows = [json.loads(line) for line in (paired / "test.jsonl").read_text().splitlines()]
    assert [one["row"] for one in told] == list(range(60))
    assert [one["query"] for one in told] == [row["topic"] for row in rows]
    gains = []
    for query in range(12):
        mine = [place for place, row in enumerate(rows) if row["topic"] == query]
        scores = [told[place]["logit"] for place in mine]
        ranks = [told[place]["rank"] for place in mine]
        assert ranks == [1 + sum(other > score for other in scores) for score in scores]
        gains.append(ndcg_score([[rows[place]["label"] for place in mine]], [scores], k=10))
    assert np.mean(gains) == pytest.approx(ours["rows"][0]["metrics"]["ndcg_at_10"], abs=1e-6)

    timing = ["--measure.seconds", 0.02, "--measure.latency_examples", 4,
              "--measure.runtimes", "[eager]", "--measure.precisions", "[fp32]"]  # fmt: skip
    config = json.loads((folder / "model" / "config.json").read_text())
    del config["finetuning_task"]  # as in folders of other libraries
    (folder / "model" / "config.json").write_text(json.dumps(config))
    code, printed = run(
        "benchmark", folder / "model", *data, *timing, "--output", paired / "measured",
        "--baseline", folder / "model",
    )  # fmt: skip
    assert code == 0, printed
    measured = json.loads((paired / "measured" / "report.json").read_text())
    assert len(measured["rows"]) == 2
    for measured_row in measured["rows"]:
        assert measured_row["metrics"] == pytest.approx(ours["rows"][0]["metrics"])

    pytest.importorskip("onnxruntime")
    for precision in ("fp32", "int8-dynamic"):
        target = ["--format", "onnx", "--precision", precision, "--output", paired / precision]
        code, printed = run("export", folder / "model", *data, *target)
        assert code == 0, printed
        assert (paired / precision / "model.onnx").is_file()
        assert "logits differ from PyTorch's by at most" in printed


@pytest.mark.slow
def test_the_report_compares_the_compressed_model(
    paired: Path, quiet_trainer: Callable[..., L.Trainer]
) -> None:
    report = CompressionBenchmark(
        runtimes=["eager"], precisions=["fp32", "int8-dynamic"], latency_examples=4, seconds=0.02
    )
    trainer = quiet_trainer(
        max_epochs=6, default_root_dir=paired / "run",
        callbacks=[StructuredPruning(removed_macs_fraction=0.2), report],
    )  # fmt: skip
    module, data = module_of(), data_in(paired)
    trainer.fit(module, data)
    (tested,) = trainer.test(module, data, verbose=False)
    (path,) = (paired / "run").rglob("report.json")
    told = json.loads(path.read_text())
    assert [row["model"] for row in told["rows"]] == ["dense", "compressed"] * 2
    assert told["rows"][1]["metrics"]["ndcg_at_10"] == pytest.approx(
        tested["test_ndcg_at_10"], abs=1e-5
    )
