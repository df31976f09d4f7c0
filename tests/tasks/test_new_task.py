"""A task added to the table works in fit, test, predict and the benchmark without another edit."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import lightning as L
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy
from transformers import BertForNextSentencePrediction

from lightning_compress.evaluation.benchmark import benchmark
from lightning_compress.evaluation.examples import examples_of
from lightning_compress.evaluation.settings import BenchmarkSettings
from lightning_compress.modules import DistillationModule, FineTuningModule
from lightning_compress.tasks import TASKS, Task, task_named, task_of
from lightning_compress.types import Batch

BERT = {
    "model_type": "bert",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 30,
    "max_position_embeddings": 16,
}


class NextSentence(Task):
    """Whether one text follows another: labels are [B] zeros and ones."""

    name = "next-sentence"
    auto_class = "AutoModelForNextSentencePrediction"
    primary_metric = "accuracy"

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(logits, labels)

    def metrics(
        self, num_labels: int | None, label_names: Sequence[str] | None = None
    ) -> MetricCollection:
        return MetricCollection({"accuracy": MulticlassAccuracy(2, average="micro")})

    def predict(self, logits: Tensor) -> Batch:
        return {"follows": logits.argmax(-1)}

    def trivial_baseline(
        self, *, examples: int, label_counts: Sequence[int], vocabulary: int
    ) -> float:
        return 0.4


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    TASKS.append(NextSentence())
    yield
    TASKS.pop()


class Pairs(L.LightningDataModule):
    """The first token's parity is the label; the second half of every other row is padding."""

    num_labels = 2
    max_length = 8

    def loader(self) -> DataLoader[Batch]:
        ids = torch.randint(1, 30, (64, 8), generator=torch.Generator().manual_seed(0))
        mask = torch.ones_like(ids)
        mask[::2, 4:] = 0
        rows = [
            {
                "input_ids": ids[row],
                "attention_mask": mask[row],
                "labels": ids[row, 0] % 2,
                "example_id": torch.tensor(row),
            }
            for row in range(64)
        ]
        return DataLoader(rows, batch_size=8)  # type: ignore[arg-type]  # a list is a map-style data set

    train_dataloader = val_dataloader = test_dataloader = predict_dataloader = loader


def trained(trainer: L.Trainer) -> FineTuningModule:
    L.seed_everything(0)
    module = FineTuningModule(config=BERT, task="next-sentence", learning_rate=2e-2)
    trainer.fit(module, datamodule=Pairs())
    return module


def test_it_is_found_by_name_and_by_model() -> None:
    assert task_named("next-sentence") is TASKS[-1]


def test_fit_validate_test_and_predict(quiet_trainer: Callable[..., L.Trainer]) -> None:
    trainer = quiet_trainer(max_epochs=12)
    module = trained(trainer)
    assert isinstance(module.model, BertForNextSentencePrediction)
    assert task_of(module.model) is TASKS[-1]
    (found,) = trainer.test(module, datamodule=Pairs(), verbose=False)
    assert found["test_accuracy"] > 0.9
    batches = trainer.predict(module, datamodule=Pairs())
    assert batches is not None
    labels = torch.cat([batch["labels"] for batch in Pairs().loader()])
    follows = torch.cat([batch["follows"] for batch in batches])  # type: ignore[call-overload]
    accuracy = (follows == labels).float().mean()
    assert float(accuracy) == pytest.approx(found["test_accuracy"], abs=1e-6)


def test_benchmark_and_distillation(
    quiet_trainer: Callable[..., L.Trainer], tmp_path: Path
) -> None:
    trainer = quiet_trainer(max_epochs=12)
    teacher = trained(trainer)
    (found,) = trainer.test(teacher, datamodule=Pairs(), verbose=False)
    report = benchmark(
        {"dense": teacher.model},
        examples_of(Pairs().loader()),
        BenchmarkSettings(
            devices=["cpu"],
            runtimes=["eager"],
            precisions=["fp32"],
            batch_sizes=[4],
            latency_examples=4,
            seconds=0.01,
        ),
        run_name="run",
        task_name="pairs",
    )
    assert report.task.metric == "accuracy"
    accuracy = report.rows[0].metrics["accuracy"]
    assert accuracy == pytest.approx(found["test_accuracy"], abs=1e-6)

    teacher.model.save_pretrained(tmp_path / "teacher")
    student = DistillationModule(
        teacher=str(tmp_path / "teacher"),
        config=BERT,
        task="next-sentence",
        teacher_cache="never",
    )
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(student, datamodule=Pairs())
    assert {"val_agreement", "val_divergence"} <= trainer.callback_metrics.keys()
