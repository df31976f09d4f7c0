"""A module of a person's own, compressed by callbacks, loads in a later process without them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from lightning_compress import restore_from_checkpoint_
from lightning_compress.models import manifest_of, masks_of
from lightning_compress.modules import FineTuningModule

from ..conftest import ToyData
from ..families import tiny_model
from .techniques import EPOCHS, TECHNIQUES
from .test_reload import logits

FAST = ("magnitude", "heads", "substitution", "quantization-aware", "post-training quantization")
NAMES = [
    pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow])
    for name, one in TECHNIQUES.items()
    if one.module is FineTuningModule
]


class Plain(L.LightningModule):
    """Has a model and nothing of this package."""

    def __init__(self) -> None:
        super().__init__()
        self.model: Any = tiny_model("bert", num_hidden_layers=4).train()

    def training_step(self, batch: dict[str, torch.Tensor], number: int) -> torch.Tensor:
        names = ("input_ids", "attention_mask", "labels")
        loss: torch.Tensor = self.model(**{name: batch[name] for name in names}).loss
        return loss

    def validation_step(self, batch: dict[str, torch.Tensor], number: int) -> None:
        self.training_step(batch, number)

    def test_step(self, batch: dict[str, torch.Tensor], number: int) -> None:
        self.training_step(batch, number)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), 1e-3)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=32)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


class Own(Plain):
    """With the line that the documentation asks for."""

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        restore_from_checkpoint_(self, checkpoint)


@pytest.mark.filterwarnings("ignore:Be aware that when using .ckpt_path., callbacks")
@pytest.mark.parametrize("name", NAMES)
def test_load_from_checkpoint(
    name: str,
    toy_data: ToyData,
    quiet_trainer: Callable[..., L.Trainer],
    tmp_path: Path,
) -> None:
    module: Any = Plain()
    trainer = quiet_trainer(max_epochs=EPOCHS, callbacks=TECHNIQUES[name].callbacks())
    trainer.fit(module, toy_data)
    for weights_only in (False, True):
        path = tmp_path / f"{weights_only}.ckpt"
        trainer.save_checkpoint(path, weights_only=weights_only)
        loaded = Own.load_from_checkpoint(path, weights_only=True)
        assert torch.equal(logits(loaded.model), logits(module.model))
        assert manifest_of(loaded.model) == manifest_of(module.model) != []
        assert masks_of(loaded.model).keys() == masks_of(module.model).keys()
        later = Own()
        quiet_trainer().test(later, toy_data, ckpt_path=path, verbose=False)
        assert torch.equal(logits(later.model), logits(module.model))


def test_model_checkpoint_of_weights_only(
    toy_data: ToyData, quiet_trainer: Callable[..., L.Trainer], tmp_path: Path
) -> None:
    keep = L.pytorch.callbacks.ModelCheckpoint(tmp_path, save_weights_only=True, save_last=True)
    callbacks = [*TECHNIQUES["pruned in three ways"].callbacks(), keep]
    module: Any = Plain()
    trainer = quiet_trainer(max_epochs=EPOCHS, callbacks=callbacks, enable_checkpointing=True)
    trainer.fit(module, toy_data)
    trained = logits(module.model)
    loaded = Own.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    assert torch.equal(logits(loaded.model), trained)
    trainer.test(module, toy_data, ckpt_path="last", verbose=False)  # by the callbacks' hook
    assert torch.equal(logits(module.model), trained)


def test_a_dense_checkpoint_still_loads(
    toy_data: ToyData, quiet_trainer: Callable[..., L.Trainer], tmp_path: Path
) -> None:
    module: Any = Plain()
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(module, toy_data)
    trainer.save_checkpoint(tmp_path / "dense.ckpt")
    loaded = Own.load_from_checkpoint(tmp_path / "dense.ckpt", weights_only=True)
    assert torch.equal(logits(loaded.model), logits(module.model))
