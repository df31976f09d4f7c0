"""A trained model, for techniques that start from one."""

from pathlib import Path

import lightning as L
import pytest
import torch

from lightning_compress import save_compressed
from lightning_compress.modules import FineTuningModule

from ..conftest import ToyData
from .techniques import CONFIG


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny BERT that has learned the toy data."""
    torch.manual_seed(0)
    module = FineTuningModule(config=CONFIG, learning_rate=3e-3)
    trainer = L.Trainer(
        accelerator="cpu", devices=1, max_epochs=6, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, ToyData())
    return save_compressed(module.model, tmp_path_factory.mktemp("trained") / "model")
