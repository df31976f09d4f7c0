"""Calibration sets from the training data."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedModel

from lightning_compress.callbacks import HeadPruning
from lightning_compress.callbacks.calibration_batches import calibration_for
from lightning_compress.data import TextClassificationDataModule
from lightning_compress.data.splits import first_id
from lightning_compress.errors import InputError
from lightning_compress.models import units_of
from lightning_compress.modules import FineTuningModule
from lightning_compress.tasks import task_named


def trainer_on(loader: Any) -> Any:
    """All that is asked of a trainer."""
    return SimpleNamespace(train_dataloader=loader)


@pytest.fixture
def mixed(text_files: Path) -> Callable[..., TextClassificationDataModule]:
    """A data module on 120 rows with a label, of which 12 are for validation, and 200 without."""
    texts = [f"w{number % 95} w{number % 7}" for number in range(200)]
    (text_files / "unlabelled.csv").write_text("\n".join(["text", *texts]))

    def build(train_on: str = "both") -> TextClassificationDataModule:
        return TextClassificationDataModule(
            path=str(text_files),
            tokenizer=str(text_files / "tokenizer"),
            train_on=train_on,  # type: ignore[arg-type]
            max_length=32,
            batch_size=16,
            cache_dir=str(text_files / "cache"),
        )

    return build


@pytest.mark.parametrize("examples", [1, 30, 1000])
def test_the_labelled_examples_of_a_mixed_data_set_are_taken(
    mixed: Callable[..., TextClassificationDataModule], tiny_bert: PreTrainedModel, examples: int
) -> None:
    data = mixed()
    data.setup("fit")
    loader = data.train_dataloader()
    trainer = trainer_on(loader)
    calibration = calibration_for(trainer, tiny_bert, examples)
    ids = torch.cat([batch["example_id"] for batch in calibration.batches]).tolist()
    expected: list[int] = []
    for batch in loader.sample():
        if len(expected) < examples:
            expected += [e for e in batch["example_id"].tolist() if e < first_id("unlabelled")]
    assert ids == expected
    assert len(ids) == 108 if examples == 1000 else len(ids) >= examples
    for batch in calibration.batches:
        assert (batch["labels"] >= 0).all()
        loss = task_named("sequence-classification").loss(
            calibration.logits(batch), batch["labels"]
        )
        assert torch.equal(calibration.loss(batch), loss)
        known = data.examples("train").by_ids(batch["example_id"].numpy())
        width = known["input_ids"].shape[1]
        for name, value in known.items():
            kept = batch[name][:, :width] if value.dim() > 1 else batch[name]
            assert torch.equal(kept, value)


def test_data_without_any_label_are_refused_with_a_remedy(
    mixed: Callable[..., TextClassificationDataModule], tiny_bert: PreTrainedModel
) -> None:
    data = mixed("unlabelled")
    data.setup("fit")
    with pytest.raises(
        InputError, match=r"no training example has a label.*data\.train_on to both"
    ):
        calibration_for(trainer_on(data.train_dataloader()), tiny_bert, 8)


@pytest.mark.parametrize(
    ("problem", "labels", "kept"),
    [
        ("regression", [1.0, float("nan"), -100.0, float("nan")], [0, 2]),
        ("multi_label_classification", [[0.0, 1.0], [float("nan")] * 2, [1.0, 0.0]], [0, 2]),
        ("single_label_classification", [0, -100, -100, 1], [0, 3]),
    ],
)
def test_labels_of_every_kind(
    tiny_model: Callable[..., PreTrainedModel], problem: str, labels: list[Any], kept: list[int]
) -> None:
    model = tiny_model("bert", num_labels=1 if problem == "regression" else 2, problem_type=problem)
    rows = [
        {"input_ids": torch.arange(8) + row, "labels": torch.tensor(label)}
        for row, label in enumerate(labels)
    ]
    loader: Any = DataLoader(rows, batch_size=4)  # type: ignore[arg-type]  # a list is map-style
    (batch,) = calibration_for(trainer_on(loader), model, 2).batches
    assert batch["input_ids"][:, 0].tolist() == kept
    assert batch["labels"].tolist() == [labels[row] for row in kept]


def test_rows_of_a_language_model_all_count() -> None:
    config = GPT2Config(
        vocab_size=20, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    model = AutoModelForCausalLM.from_config(config)
    labels = [torch.full((6,), -100), torch.arange(6)]
    rows = [{"input_ids": torch.arange(6), "labels": row} for row in labels]
    loader: Any = DataLoader(rows, batch_size=2)  # type: ignore[arg-type]  # a list is map-style
    (batch,) = calibration_for(trainer_on(loader), model, 2).batches
    assert torch.equal(batch["labels"], torch.stack(labels))


def test_fine_tuning_and_pruning_among_unlabelled_texts(
    mixed: Callable[..., TextClassificationDataModule], quiet_trainer: Callable[..., L.Trainer]
) -> None:
    torch.manual_seed(0)
    module = FineTuningModule(
        config={
            "model_type": "bert", "hidden_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": 32,
        }
    )  # fmt: skip
    callback = HeadPruning(removed_fraction=0.5, pruning_steps=1, calibration_examples=40)
    trainer = quiet_trainer(max_epochs=2, callbacks=[callback])
    trainer.fit(module, mixed())
    assert torch.isfinite(trainer.callback_metrics["train_loss"])
    assert 0 < trainer.callback_metrics["val_loss"] < 2
    assert sum(units.count for units in units_of(module.model, "heads")) == 4
