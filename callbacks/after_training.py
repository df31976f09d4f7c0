"""What compresses a trained model once, at the end of a fit: on the best weights, as the best."""

import copy
from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint

from .run_folder import run_folder


def load_best(trainer: L.Trainer, pl_module: L.LightningModule) -> None:
    """Go back to the best weights, if the run has chosen any."""
    best = next((one.best_model_path for one in _watching(trainer) if one.best_model_path), None)
    if best is None:
        return
    checkpoint = trainer.strategy.load_checkpoint(best, weights_only=True)
    pl_module.on_load_checkpoint(copy.copy(checkpoint))
    pl_module.load_state_dict(checkpoint["state_dict"])


def save_as_best(trainer: L.Trainer) -> None:
    """Save a checkpoint of the model as it is, and let it be the best of the run."""
    for one in _watching(trainer):
        folder = one.dirpath or run_folder(trainer) / "checkpoints"
        one.best_model_path = str(Path(folder) / "post_training.ckpt")
        one.best_model_score = None
    # Only now: a checkpoint says which the best one is, and who loads it believes that.
    for path in dict.fromkeys(one.best_model_path for one in _watching(trainer)):
        trainer.save_checkpoint(path, weights_only=False)


def _watching(trainer: L.Trainer) -> list[ModelCheckpoint]:
    return [one for one in trainer.checkpoint_callbacks if isinstance(one, ModelCheckpoint)]
