"""Token classification from the files to the report: training, compression, commands."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from transformers import AutoModel

from lightning_compress.callbacks import CompressionBenchmark, StructuredPruning
from lightning_compress.data import TextClassificationDataModule, TokenClassificationDataModule
from lightning_compress.errors import InputError
from lightning_compress.models import manifest_of
from lightning_compress.modules import DistillationModule, FineTuningModule
from lightning_compress.modules.teacher_inputs import CacheUse
from lightning_compress.saving import load_compressed

from .compressions import COMPRESSIONS
from .families import ALL, tiny_config, tiny_options

CONFIG = {**tiny_options("bert", num_hidden_layers=4), "vocab_size": 100}


@pytest.fixture
def tagged(text_files: Path) -> Path:
    """A folder with train.conll, test.conll and a tokenizer: w1 begins an entity, w2 goes on."""
    draw = random.Random(0)
    for name, count in (("train", 160), ("test", 40)):
        sentences = []
        for _ in range(count):
            words = [f"w{draw.randint(3, 94)}" for _ in range(draw.randint(4, 20))]
            for place in draw.sample(range(len(words) - 1), 2):
                words[place : place + 2] = ["w1", draw.choice(["w2", "w3"])]
            tags = [{"w1": "B-x", "w2": "I-x"}.get(word, "O") for word in words]
            sentences.append("".join(f"{w} {t}\n" for w, t in zip(words, tags, strict=True)))
        (text_files / f"{name}.conll").write_text("\n".join(sentences))
        (text_files / f"{name}.csv").unlink()
    return text_files


def data_in(folder: Path, **options: Any) -> TokenClassificationDataModule:
    return TokenClassificationDataModule(
        path=str(folder), tokenizer=str(folder / "tokenizer"), max_length=32, batch_size=16,
        cache_dir=str(folder / "cache"), **options,
    )  # fmt: skip


def module_of(**options: Any) -> FineTuningModule:
    options = options or {"config": CONFIG}
    return FineTuningModule(task="token-classification", learning_rate=5e-3, **options)


def test_it_learns_what_an_entity_is(tagged: Path, quiet_trainer: Callable[..., L.Trainer]) -> None:
    L.seed_everything(0)
    trainer, module, data = quiet_trainer(max_epochs=4), module_of(), data_in(tagged)
    trainer.fit(module, data)
    (found,) = trainer.test(module, data, verbose=False)
    assert found["test_f1"] > 0.9
    assert module.task.primary_metric == "f1"
    assert module.model.config.id2label == {0: "B-x", 1: "I-x", 2: "O"}
    assert {"test_precision", "test_recall", "test_accuracy", "test_loss"} <= found.keys()


def test_a_data_module_for_another_task_is_refused(
    tagged: Path, quiet_trainer: Callable[..., L.Trainer]
) -> None:
    message = "model.task is sequence-classification and the data module gives labels for token-cl"
    with pytest.raises(InputError, match=message):
        quiet_trainer(max_epochs=1).fit(FineTuningModule(config=CONFIG), data_in(tagged))
    texts = TextClassificationDataModule(path=str(tagged), tokenizer=str(tagged / "tokenizer"))
    with pytest.raises(
        InputError, match=r"for sequence-classification: .*\.TokenClassificationDataModule"
    ):
        quiet_trainer(max_epochs=1).fit(module_of(), texts)


@pytest.mark.slow
@pytest.mark.parametrize("technique", COMPRESSIONS)
def test_every_technique_works_and_is_reported(
    tagged: Path, technique: str, quiet_trainer: Callable[..., L.Trainer]
) -> None:
    report = CompressionBenchmark(
        runtimes=["eager"], precisions=["fp32"], latency_examples=4, seconds=0.02
    )
    trainer = quiet_trainer(
        max_epochs=4, callbacks=[COMPRESSIONS[technique](), report], default_root_dir=tagged / "run"
    )
    module, data = module_of(), data_in(tagged)
    trainer.fit(module, data)
    trainer.test(module, data, verbose=False)
    assert manifest_of(module.model)
    (path,) = (tagged / "run").rglob("report.json")
    told = json.loads(path.read_text())
    assert told["task"]["metric"] == "f1"
    assert [row["model"] for row in told["rows"]] == ["dense", "compressed"]
    assert all(0 <= row["metrics"]["f1"] <= 1 for row in told["rows"])
    again = load_compressed(str(path.parent / "model"))
    batch = next(iter(data.test_dataloader()))
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, module.model.eval()(**inputs).logits)


@pytest.mark.slow
@pytest.mark.parametrize("family", ALL)
def test_every_family_has_the_task(
    tagged: Path, family: str, quiet_trainer: Callable[..., L.Trainer]
) -> None:
    trainer = quiet_trainer(max_epochs=2, callbacks=[StructuredPruning(removed_macs_fraction=0.2)])
    AutoModel.from_config(tiny_config(family)).save_pretrained(tagged / "body")
    trainer.fit(module_of(pretrained=str(tagged / "body")), data_in(tagged))
    assert trainer.callback_metrics["val_accuracy"] > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["never", "always"])
def test_a_student_learns_from_a_teacher(
    tagged: Path, cache: CacheUse, quiet_trainer: Callable[..., L.Trainer]
) -> None:
    L.seed_everything(0)
    teacher, data = module_of(), data_in(tagged)
    quiet_trainer(max_epochs=4).fit(teacher, data)
    teacher.model.save_pretrained(tagged / "teacher")
    student = DistillationModule(
        teacher=str(tagged / "teacher"), task="token-classification", config=CONFIG,
        learning_rate=5e-3, teacher_cache=cache, cache_dir=str(tagged / "cache"),
    )  # fmt: skip
    trainer = quiet_trainer(max_epochs=4)
    trainer.fit(student, data_in(tagged))
    assert trainer.callback_metrics["val_agreement"] > 0.9
    assert trainer.callback_metrics["val_teacher_f1"] > 0.9


@pytest.mark.slow
def test_commands_on_a_saved_model(tagged: Path, run: Callable[..., tuple[object, str]]) -> None:
    data = [
        "--data", "lightning_compress.data.TokenClassificationDataModule", "--data.path", tagged,
        "--data.max_length", 32, "--data.cache_dir", tagged / "cache",
    ]  # fmt: skip
    model = ["--model.task", "token-classification", "--model.config", json.dumps(CONFIG),
             "--model.learning_rate", 5e-3, "--data.tokenizer", tagged / "tokenizer"]  # fmt: skip
    trainer = ["--trainer.accelerator", "cpu", "--trainer.logger.save_dir", tagged / "logs",
               "--trainer.callbacks+", "lightning_compress.callbacks.CompressionBenchmark",
               "--trainer.callbacks.runtimes", "[eager]", "--trainer.callbacks.seconds", 0.02,
               "--trainer.callbacks.precisions", "[fp32]"]  # fmt: skip
    code, printed = run("fit", *data, *model, *trainer, "--trainer.max_epochs", 4)
    assert code == 0, printed
    folder = tagged / "logs" / "fit" / "version_0"
    (checkpoint,) = folder.rglob("epoch*.ckpt")

    code, printed = run("predict", *data, *model, *trainer, "--ckpt_path", checkpoint)
    assert code == 0, printed
    (path,) = (tagged / "logs").rglob("predictions.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    sentences = (tagged / "test.conll").read_text().split("\n\n")
    for row in rows:
        lines = sentences[row["row"]].strip().split("\n")
        assert row["words"] == [line.split()[0] for line in lines]
        assert len(row["tags"]) == len(row["probabilities"]) == len(row["words"])
    assert {tag for row in rows for tag in row["tags"]} == {"B-x", "I-x", "O"}

    timing = ["--measure.seconds", 0.02, "--measure.latency_examples", 4]
    run("benchmark", folder / "model", *data, "--measure.runtimes", "[eager]",
        "--measure.precisions", "[fp32]", *timing, "--output", tagged / "measured")  # fmt: skip
    told = json.loads((tagged / "measured" / "report.json").read_text())
    ours = json.loads((folder / "report.json").read_text())
    assert told["rows"][0]["metrics"] == pytest.approx(ours["rows"][0]["metrics"])

    pytest.importorskip("onnxruntime")
    target = ["--format", "onnx", "--output", tagged / "onnx"]
    _, printed = run("export", folder / "model", *data, *target)
    assert "of the predictions are equal" in printed
