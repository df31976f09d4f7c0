"""Extractive question answering from the files to the report: training, compression, commands."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from transformers import AutoModel
from transformers.models.auto.modeling_auto import MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES

from lightning_compress.callbacks import CompressionBenchmark, StructuredPruning
from lightning_compress.data import QuestionAnsweringDataModule
from lightning_compress.errors import InputError
from lightning_compress.models import manifest_of
from lightning_compress.models.forward import logits_in
from lightning_compress.modules import DistillationModule, FineTuningModule
from lightning_compress.saving import load_compressed

from .compressions import COMPRESSIONS
from .families import ALL, tiny_config, tiny_options

WITH_HEAD = [family for family in ALL if family in MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES]
CONFIG = {**tiny_options("bert", num_hidden_layers=4), "vocab_size": 100}


@pytest.fixture
def asked(text_files: Path) -> Path:
    """A folder with train.jsonl, test.jsonl and a tokenizer: answers are from w1 to w2."""
    draw = random.Random(0)
    for name, count in (("train", 160), ("test", 40)):
        rows = []
        for _ in range(count):
            words = [f"w{draw.randint(3, 94)}" for _ in range(draw.randint(8, 30))]
            place = draw.randrange(len(words) - 2)
            words[place], words[place + 2] = "w1", "w2"
            context = " ".join(words)
            start = f" {context} ".index(" w1 ")
            answer = " ".join(context[start:].split()[:3])
            rows.append({"question": f"w{draw.randint(3, 94)}", "context": context,
                         "answers": {"text": [answer], "answer_start": [start]}})  # fmt: skip
        (text_files / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        (text_files / f"{name}.csv").unlink()
    return text_files


def data_in(folder: Path) -> QuestionAnsweringDataModule:
    return QuestionAnsweringDataModule(
        path=str(folder), tokenizer=str(folder / "tokenizer"), max_length=24, overlap=8,
        batch_size=16, cache_dir=str(folder / "cache"),
    )  # fmt: skip


def module_of(**options: Any) -> FineTuningModule:
    options = options or {"config": CONFIG}
    return FineTuningModule(task="question-answering", learning_rate=5e-3, **options)


def test_it_learns_where_an_answer_is(asked: Path, quiet_trainer: Callable[..., L.Trainer]) -> None:
    L.seed_everything(0)
    trainer, module, data = quiet_trainer(max_epochs=4), module_of(), data_in(asked)
    trainer.fit(module, data)
    (found,) = trainer.test(module, data, verbose=False)
    assert found["test_f1"] > 0.9
    assert found["test_exact_match"] <= found["test_f1"]


@pytest.mark.slow
@pytest.mark.parametrize("technique", COMPRESSIONS)
def test_every_technique_works_and_is_reported(
    asked: Path, technique: str, quiet_trainer: Callable[..., L.Trainer]
) -> None:
    report = CompressionBenchmark(
        runtimes=["eager"], precisions=["fp32"], latency_examples=4, seconds=0.02
    )
    trainer = quiet_trainer(
        max_epochs=4, callbacks=[COMPRESSIONS[technique](), report], default_root_dir=asked / "run"
    )
    module, data = module_of(), data_in(asked)
    trainer.fit(module, data)
    (tested,) = trainer.test(module, data, verbose=False)
    assert manifest_of(module.model)
    (path,) = (asked / "run").rglob("report.json")
    told = json.loads(path.read_text())
    assert told["task"]["metric"] == "f1"
    assert [row["model"] for row in told["rows"]] == ["dense", "compressed"]
    assert told["rows"][1]["metrics"]["f1"] == pytest.approx(tested["test_f1"], abs=0.05)
    again = load_compressed(str(path.parent / "model"))
    batch = next(iter(data.test_dataloader()))
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    with torch.no_grad():
        expected = logits_in(module.model.eval()(**inputs), module.model, inputs)
        assert torch.equal(logits_in(again(**inputs), again, inputs), expected)


@pytest.mark.slow
@pytest.mark.parametrize("family", WITH_HEAD)
def test_every_family_has_the_task(
    asked: Path, family: str, quiet_trainer: Callable[..., L.Trainer]
) -> None:
    trainer = quiet_trainer(max_epochs=1, callbacks=[StructuredPruning(removed_macs_fraction=0.2)])
    AutoModel.from_config(tiny_config(family)).save_pretrained(asked / "body")
    trainer.fit(module_of(pretrained=str(asked / "body")), data_in(asked))
    assert 0 <= trainer.callback_metrics["val_f1"] <= 1


@pytest.mark.slow
def test_a_student_learns_from_a_teacher(
    asked: Path, quiet_trainer: Callable[..., L.Trainer]
) -> None:
    L.seed_everything(0)
    teacher, data = module_of(), data_in(asked)
    quiet_trainer(max_epochs=4).fit(teacher, data)
    teacher.model.save_pretrained(asked / "teacher")
    for cache in ("never", "always"):
        student = DistillationModule(
            teacher=str(asked / "teacher"), task="question-answering", config=CONFIG,
            learning_rate=5e-3, teacher_cache=cache, cache_dir=str(asked / "cache"),
        )  # fmt: skip
        trainer = quiet_trainer(max_epochs=4)
        trainer.fit(student, data_in(asked))
        assert trainer.callback_metrics["val_teacher_f1"] > 0.9
        assert trainer.callback_metrics["val_agreement"] > 0.8


@pytest.mark.slow
def test_commands_on_a_saved_model(asked: Path, run: Callable[..., tuple[object, str]]) -> None:
    data = [
        "--data", "lightning_compress.data.QuestionAnsweringDataModule", "--data.path", asked,
        "--data.max_length", 24, "--data.overlap", 8, "--data.cache_dir", asked / "cache",
    ]  # fmt: skip
    model = ["--model.task", "question-answering", "--model.config", json.dumps(CONFIG),
             "--model.learning_rate", 5e-3, "--data.tokenizer", asked / "tokenizer"]  # fmt: skip
    trainer = ["--trainer.accelerator", "cpu", "--trainer.logger.save_dir", asked / "logs",
               "--trainer.callbacks+", "lightning_compress.callbacks.CompressionBenchmark",
               "--trainer.callbacks.runtimes", "[eager]", "--trainer.callbacks.seconds", 0.02,
               "--trainer.callbacks.precisions", "[fp32]"]  # fmt: skip
    code, printed = run("fit", *data, *model, *trainer, "--trainer.max_epochs", 4)
    assert code == 0, printed
    folder = asked / "logs" / "fit" / "version_0"
    (checkpoint,) = folder.rglob("epoch*.ckpt")
    ours = json.loads((folder / "report.json").read_text())

    code, printed = run("predict", *data, *model, *trainer, "--ckpt_path", checkpoint)
    assert code == 0, printed
    (path,) = (asked / "logs").rglob("predictions.jsonl")
    told = [json.loads(line) for line in path.read_text().splitlines()]
    rows = [json.loads(line) for line in (asked / "test.jsonl").read_text().splitlines()]
    assert [one["row"] for one in told] == list(range(40))
    right = [one["answer"] in row["answers"]["text"] for one, row in zip(told, rows, strict=True)]
    assert sum(right) / 40 == pytest.approx(ours["rows"][0]["metrics"]["exact_match"])
    assert all(one["answer"] == one["candidates"][0]["answer"] for one in told)

    timing = ["--measure.seconds", 0.02, "--measure.latency_examples", 4]
    run("benchmark", folder / "model", *data, "--measure.runtimes", "[eager]",
        "--measure.precisions", "[fp32]", *timing, "--output", asked / "measured")  # fmt: skip
    measured = json.loads((asked / "measured" / "report.json").read_text())
    assert measured["rows"][0]["metrics"] == pytest.approx(ours["rows"][0]["metrics"])

    pytest.importorskip("onnxruntime")
    for precision in ("fp32", "int8-dynamic"):
        target = ["--format", "onnx", "--precision", precision, "--output", asked / precision]
        _, printed = run("export", folder / "model", *data, *target)
        assert "of the predictions are equal" in printed


def test_a_model_for_words_is_refused(asked: Path, quiet_trainer: Callable[..., L.Trainer]) -> None:
    module = FineTuningModule(task="token-classification", config=CONFIG)
    with pytest.raises(InputError, match="gives labels for question-answering"):
        quiet_trainer(max_epochs=1).fit(module, data_in(asked))
