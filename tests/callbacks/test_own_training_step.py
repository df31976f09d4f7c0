"""Calibration by the training step of somebody's own module: a bare encoder under another head."""

from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from torchmetrics.classification import MulticlassAccuracy
from transformers import AutoConfig, AutoModel, BatchEncoding

from lightning_compress.callbacks import (
    EncoderBlockSubstitution,
    HeadPruning,
    LayerPruning,
    PostTrainingPruning,
    PostTrainingQuantization,
    QuantizationAwareTraining,
)
from lightning_compress.callbacks.calibration_batches import calibration_for
from lightning_compress.errors import InputError
from lightning_compress.models import manifest_of
from lightning_compress.quantization import QuantizationConfig

from .conftest import CONFIG, Foreign


class OwnHead(L.LightningModule):
    """A bare encoder under a head of its own; the batches are pairs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = AutoModel.from_config(AutoConfig.for_model(**CONFIG))
        self.head = nn.Linear(self.encoder.config.hidden_size, 2)
        self.accuracy = MulticlassAccuracy(2)
        self.losses: list[float] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> dict[str, Tensor]:
        ids, labels = batch
        logits = self.head(self.encoder(ids, attention_mask=torch.ones_like(ids))[0][:, 0])
        loss = nn.functional.cross_entropy(logits, labels)
        self.accuracy(logits, labels)
        self.losses.append(float(loss.detach()))
        self.log("loss", loss)
        return {"loss": loss}

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def pairs(toy_data: Any) -> DataLoader[Any]:
    rows = [(row["input_ids"], row["labels"]) for row in toy_data.rows]
    return DataLoader(rows, 8)  # type: ignore[arg-type]


CALLBACKS: dict[str, Callable[[], L.Callback]] = {
    "heads": lambda: HeadPruning(removed_fraction=0.5, calibration_examples=16),
    "layers": lambda: LayerPruning(removed_count=1, score="influence"),
    "substitution": lambda: EncoderBlockSubstitution(
        selection="even", width=8, distil_steps=2, calibration_examples=16
    ),
    "post_training": lambda: PostTrainingPruning(removed_macs_fraction=0.3),
    "ptq": lambda: PostTrainingQuantization(quantization=QuantizationConfig("int8-static")),
    "qat": lambda: QuantizationAwareTraining(quantization=QuantizationConfig("int8-static")),
}


@pytest.mark.parametrize("name", CALLBACKS)
def test_a_bare_encoder_under_a_head_of_its_own_is_compressed(
    name: str, toy_data: Any, quiet_trainer: Callable[..., L.Trainer]
) -> None:
    module = OwnHead()
    quiet_trainer(max_epochs=1, callbacks=[CALLBACKS[name]()]).fit(module, pairs(toy_data))
    assert manifest_of(module.encoder)
    assert len(module.losses) == 8  # those of the training alone
    assert module.accuracy.update_count == 8


def test_the_loss_is_that_of_the_training_step(
    toy_data: Any, quiet_trainer: Callable[..., L.Trainer]
) -> None:
    module = OwnHead()
    trainer = quiet_trainer(max_epochs=0)
    trainer.fit(module, pairs(toy_data))
    trainer.fit_loop.setup_data()
    calibration = calibration_for(trainer, module.encoder, 64)
    assert len(calibration.batches) == 8
    assert calibration.tokens(module.encoder) == 8.0
    module.eval()
    ids = torch.stack([row["input_ids"] for row in toy_data.rows])
    # Rows as far apart as there are batches.
    for first, batch in enumerate(calibration.batches):
        assert torch.equal(batch["input_ids"], ids[first::8])
        labels = torch.stack([row["labels"] for row in toy_data.rows])[first::8]
        states = module.encoder(ids[first::8]).last_hidden_state
        assert torch.equal(calibration.logits(batch), states)
        expected = nn.functional.cross_entropy(module.head(states[:, 0]), labels)
        torch.testing.assert_close(calibration.loss(batch), expected)


def test_a_collator_of_transformers_gives_mappings(
    toy_data: Any, quiet_trainer: Callable[..., L.Trainer]
) -> None:
    def collate(rows: list[dict[str, Tensor]]) -> BatchEncoding:
        return BatchEncoding({name: torch.stack([row[name] for row in rows]) for name in rows[0]})

    module = Foreign()
    loader = DataLoader(toy_data.rows, 8, collate_fn=collate)
    quiet_trainer(max_epochs=1, callbacks=[CALLBACKS["heads"]()]).fit(module, loader, loader)
    assert manifest_of(module.net)


class InOrder(IterableDataset[Any]):
    def __init__(self, rows: list[Any]) -> None:
        self.rows = rows

    def __iter__(self) -> Any:
        return iter(self.rows)


class TwoTowers(OwnHead):
    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        self.encoder(batch[0])
        return super().training_step(batch, batch_idx)


class Manual(OwnHead):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


@pytest.mark.parametrize("name", CALLBACKS)
@pytest.mark.parametrize(
    ("module_class", "loader", "match"),
    [
        (OwnHead, lambda rows: DataLoader(InOrder(rows), 8), "map-style"),
        (OwnHead, lambda rows: {"a": DataLoader(rows, 8)}, "map-style"),
        (TwoTowers, lambda rows: DataLoader(rows, 8), "calls BertModel 2 times for a batch"),
        (Manual, lambda rows: DataLoader(rows, 8), "optimizes manually"),
    ],
)
def test_what_cannot_be_calibrated_on_is_refused_before_the_first_step(
    name: str,
    module_class: type[OwnHead],
    loader: Callable[[Any], Any],
    match: str,
    toy_data: Any,
    quiet_trainer: Callable[..., L.Trainer],
) -> None:
    rows = [(row["input_ids"], row["labels"]) for row in toy_data.rows]
    trainer = quiet_trainer(max_steps=8, callbacks=[CALLBACKS[name]()])
    with pytest.raises(InputError, match=match):
        trainer.fit(module_class(), loader(rows))
    assert trainer.global_step == 0


@pytest.mark.parametrize(
    ("callback", "remedy"),
    [
        (lambda: LayerPruning(removed_count=1), "score: influence"),
        (EncoderBlockSubstitution, "selection: even"),
        (lambda: PostTrainingQuantization(skip_most_sensitive=1), "leave it out"),
        (lambda: PostTrainingQuantization(max_loss=1.0), "max_loss"),
    ],
)
def test_scores_of_predictions_need_a_head_and_name_the_remedy(
    callback: Callable[[], L.Callback],
    remedy: str,
    toy_data: Any,
    quiet_trainer: Callable[..., L.Trainer],
) -> None:
    trainer = quiet_trainer(max_epochs=1, callbacks=[callback()])
    with pytest.raises(InputError, match=remedy):
        trainer.fit(OwnHead(), pairs(toy_data))
    assert trainer.global_step == 0
